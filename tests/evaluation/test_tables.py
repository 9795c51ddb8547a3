import numpy as np
import pandas as pd
import pytest
from evaluation_doubles import autoencoder, make_inputs, open_draft

from sae_pipeline.evaluation import (
    METRICS,
    EvaluationError,
    audit_metric,
    audit_table,
    build_table,
    challenge,
    champion,
    read_metric,
    read_tables,
    write_metric,
    write_table,
)
from sae_pipeline.evaluation.tables import METRIC_COLUMNS, TABLES


def publish_metric(path, result):
    with open_draft(path) as draft:
        return draft.publish(write_metric(draft, result))


@pytest.fixture(scope="module")
def published(subject, evaluation_set, tmp_path_factory):
    """Two autoencoders, all metrics."""
    root = tmp_path_factory.mktemp("metrics")
    artefacts = []
    for i, n in enumerate((48, 96)):
        inputs = make_inputs(
            autoencoder(n=n, seed=i), evaluation_set, root / f"codes{i}", subject=subject,
            autoencoder_key=f"topk-n{n}-k4", sae_id=str(i) * 64,
        )  # fmt: skip
        artefacts += [publish_metric(root / f"{i}-{name}", metric.run(inputs)) for name, metric in METRICS.items()]
    return artefacts


def saes():
    return pd.DataFrame(
        {
            "autoencoder": ["topk-n48-k4", "topk-n96-k4"], "sae_id": ["0" * 64, "1" * 64], "recipe": "topk",
            "n": [48, 96], "k": pd.array([4, 4], "Int64"), "seed": 0,
        }
    )  # fmt: skip


def test_results_survive_their_artefact(published, subject, evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", subject=subject)
    for name, metric in METRICS.items():
        result = metric.run(inputs)
        again = read_metric(publish_metric(tmp_path / name, result))
        for table in TABLES:
            pd.testing.assert_frame_equal(getattr(again, table), getattr(result, table), check_exact=True)
        assert (again.metric, again.version, again.facts) == (name, metric.version, result.facts)


def test_every_row_says_what_it_is(published):
    metrics = build_table(published)["metrics"]
    assert list(metrics.columns) == list(METRIC_COLUMNS)
    assert metrics[["unit", "better", "site", "sae_id", "evaluation_id"]].notna().all(axis=None)
    assert set(metrics["status"]) <= {"ok", "partial", "na"}
    assert (metrics["value"].notna() | metrics["reason"].notna()).all()
    key = ["autoencoder", "sae_id", "evaluation_id", "metric", "variant"]
    assert not metrics.duplicated(key).any()


def test_table_depends_on_content_alone(published):
    one, other = build_table(published), build_table(published[::-1])
    for name in TABLES:
        pd.testing.assert_frame_equal(one[name], other[name], check_exact=True)
    assert set(one["unit_stats"]["autoencoder"]) == {"topk-n48-k4", "topk-n96-k4"}
    assert len(one["latent_stats"]) == 48 + 96
    assert build_table([])["metrics"].empty


def test_a_figure_that_is_there_twice_is_an_error(published):
    with pytest.raises(EvaluationError, match="two results hold the same figure"):
        build_table([published[0], published[0]])


def test_site_table_holds_all_and_its_audit_counts(published, tmp_path):
    with open_draft(tmp_path / "table") as draft:
        summary = write_table(draft, published, saes(), expected=2 * len(METRICS))
        audit = audit_table(draft).iloc[0]
        artefact = draft.publish(summary)
    assert summary["results"] == audit["results"] == audit["results_expected"] == 2 * len(METRICS)
    assert audit["rows"] == summary["rows"] and audit["duplicates"] == 0
    tables = read_tables(artefact)
    assert list(tables) == ["saes", *TABLES]
    assert list(tables["saes"]["n"]) == [48, 96]


@pytest.mark.parametrize(("rise", "expected"), [(0.02, 1), (0.0005, 0), (-0.02, 0)])
def test_audit_counts_disorder_beyond_two_standard_errors(published, tmp_path, rise, expected):
    with open_draft(tmp_path / "table") as draft:
        write_table(draft, published, saes(), expected=2 * len(METRICS))
        metrics = read_tables(draft)["metrics"]
        nmse = (metrics["metric"] == "nmse") & (metrics["variant"] == "all")
        metrics.loc[nmse, "value"] = 0.1 + rise * (metrics.loc[nmse, "autoencoder"] == "topk-n96-k4")
        metrics.loc[nmse, "se"] = 0.001
        metrics.to_parquet(draft.file("metrics.parquet"))
        assert audit_table(draft).iloc[0]["disorder_beyond_2se"] == expected


def test_metric_audit_shows_what_gates_read(published, tmp_path):
    audits = {row["metric"]: row for row in (audit_metric(artefact).iloc[0] for artefact in published[:3])}
    down = audits["downstream"]
    assert down["control_kl"] == down["control_dce"] == 0.0 and down["round_trip_kl"] < 1e-6
    assert np.isfinite(down[["kl", "dce", "mean_ablation_dce"]].astype(float)).all()
    assert 0 < audits["reconstruction"]["nmse"] < 10 and np.isnan(down["nmse"])
    assert all(audit["missing_without_reason"] == audit["infinite"] == 0 for audit in audits.values())

    result = read_metric(published[0])
    result.metrics.loc[0, "value"] = np.inf
    result.metrics.loc[1, ["value", "reason"]] = [np.nan, None]
    with open_draft(tmp_path / "broken") as draft:
        write_metric(draft, result)
        broken = audit_metric(draft).iloc[0]
    assert (broken["infinite"], broken["missing_without_reason"], broken["outside_interval"]) == (1, 1, 1)


def publish_autoencoder(path, made, identity):
    with open_draft(path, identity) as draft:
        for name, parts in made.to_files().items():
            draft.write_bytes(name, *parts)
        return draft.publish({})


def test_only_a_surely_better_challenger_is_promoted(evaluation_set, tmp_path):
    good, worse = autoencoder(n=96, k=8), autoencoder(n=96, k=8)
    worse.W_dec.neg_()
    artefacts = [publish_autoencoder(tmp_path / name, made, name[0] * 64) for name, made in (("a", good), ("b", worse))]
    first = challenge(artefacts[0], None, evaluation_set, resamples=200, seed=0)
    assert first["promoted"] and first["incumbent_id"] is None and first["nmse"] > 0
    lost = challenge(artefacts[1], artefacts[0], evaluation_set, resamples=200, seed=0)
    assert not lost["promoted"] and lost["ci_lo"] > 0 and lost["incumbent_nmse"] == first["nmse"]
    won = challenge(artefacts[0], artefacts[1], evaluation_set, resamples=200, seed=0)
    assert won["promoted"] and won["difference"] == pytest.approx(-lost["difference"])
    same = challenge(artefacts[0], artefacts[0], evaluation_set, resamples=200, seed=0)
    assert not same["promoted"] and "already" in same["reason"]


def test_one_held_out_document_promotes_nobody_but_the_first(evaluation_set, tmp_path, monkeypatch):
    artefacts = [publish_autoencoder(tmp_path / name, autoencoder(n=96, k=8), name * 64) for name in ("a", "b")]
    unit_stats = champion._unit_stats
    monkeypatch.setattr(champion, "_unit_stats", lambda *given: unit_stats(*given).head(1))
    found = challenge(artefacts[0], artefacts[1], evaluation_set, resamples=200, seed=0)
    assert not found["promoted"] and found["reason"] == "one held-out document gives no interval"
    assert found["n_units"] == 1 and found["ci_lo"] is None
