from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import (
    SITE,
    VOCAB,
    D,
    autoencoder,
    constant_autoencoder,
    make_inputs,
    open_draft,
    value_of,
)
from probe_doubles import N_DOCUMENTS, planted, with_controls

from sae_pipeline.evaluation import METRICS, EvaluationError
from sae_pipeline.evaluation.probes import (
    ProbeData,
    audit_probe_data,
    build_probe_data,
    columns,
    make_probe_set,
    search,
)
from sae_pipeline.evaluation.probes.probe_data import sampling_for
from sae_pipeline.store import PipelineError
from sae_pipeline.study import SubjectConfig

METRIC = METRICS["probes"]
LN2 = float(np.log(2))
USABLE = ["planted", "token", "noise"]
LATENT = 17


@pytest.fixture(scope="module")
def made():
    return autoencoder("topk", n=48, k=8, normaliser="none")


@pytest.fixture(scope="module")
def data(made):
    """The task `planted` asks for the side of latent 17."""
    return planted(D, direction=made.W_enc[LATENT].double().numpy())


@pytest.fixture(scope="module")
def inputs(made, data, evaluation_set, tmp_path_factory):
    return make_inputs(made, evaluation_set, tmp_path_factory.mktemp("probes") / "codes", probe_data=data)


@pytest.fixture(scope="module")
def result(inputs):
    return METRIC.run(inputs)


def probes_of(result, task, probe="best", code="pre"):
    rows = result.probe_results
    return rows[(rows["task"] == task) & (rows["probe"] == probe) & (rows["code"] == code)]


def probe_of(result, task, probe="best", code="pre"):
    rows = probes_of(result, task, probe, code)
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_planted_latent_is_found(result, data, made):
    found = probe_of(result, "planted")
    assert found["latents"] == str(LATENT)
    assert found["n_train"] + found["n_test"] == 800 and found["n_documents"] == N_DOCUMENTS * 2 / 5
    # The best that a reading of the planted direction can do: P(label | x) is a normal distribution function there.
    x_r = data.x_ud @ (made.W_enc[LATENT] / made.W_enc[LATENT].norm()).numpy()
    p_r = torch.special.ndtr(torch.from_numpy(x_r).double() / 0.5)
    entropy = float(-(p_r * p_r.log() + (1 - p_r) * (1 - p_r).log()).nan_to_num().mean())
    assert found["loss"] == pytest.approx(entropy, abs=3 * found["loss_se"]) and found["loss_se"] < 0.03
    assert probe_of(result, "planted", code="post")["loss"] > found["loss"]


def test_nothing_is_found_where_there_is_nothing(result):
    for code in ("pre", "post"):
        found = probe_of(result, "noise", code=code)
        assert found["train_loss"] < LN2 < found["loss"] + 3 * found["loss_se"]
        for task in USABLE:
            permuted = probe_of(result, task, "permuted", code)
            assert permuted["train_loss"] < LN2 and permuted["loss"] > LN2 - 0.02


def test_the_test_rows_choose_nothing(inputs, data, result):
    test_r = np.unique(data.probe_set.places.place_r[data.probe_set.test_r])
    other = data.x_ud.copy()
    other[test_r] = np.random.default_rng(5).normal(size=other[test_r].shape)
    turned = METRIC.run(replace(inputs, probe_data=with_controls(data.probe_set, other)))
    known = [
        one.probe_results[one.probe_results["train_loss"].notna()].set_index(["task", "probe", "code", "k"])
        for one in (result, turned)
    ]
    for column in ("latents", "train_loss"):
        pd.testing.assert_series_equal(known[0][column], known[1][column])
    assert probe_of(turned, "planted")["loss"] > probe_of(result, "planted")["loss"] + 0.1


def test_every_figure_is_the_mean_over_tasks(result):
    losses = [probe_of(result, task)["loss"] for task in USABLE]
    row = value_of(result, "probe_loss", "pre")
    assert row["value"] == pytest.approx(np.mean(losses))
    assert row["se"] == pytest.approx(np.std(losses, ddof=1) / np.sqrt(3))
    assert (row["n_units"], row["unit_kind"], row["unit"]) == (3, "task", "nats")
    token = [probe_of(result, task, "counts", "token")["loss"] for task in USABLE]
    gain = value_of(result, "probe_gain", "pre_over_token")
    assert gain["value"] == pytest.approx(np.mean(token) - np.mean(losses))
    wins = value_of(result, "probe_wins", "pre_over_token")
    assert wins["value"] == pytest.approx(np.mean(np.array(losses) < np.array(token)))
    stats = result.unit_stats.query("metric == 'probe_loss' and variant == 'pre'")
    assert [result.facts["tasks"][unit] for unit in stats["unit_id"]] == USABLE
    assert stats["num"].to_numpy() == pytest.approx(losses)


def test_lexical_tasks_and_others_stand_apart(result):
    assert value_of(result, "probe_loss", "pre_lexical")["value"] == probe_of(result, "token")["loss"]
    others = [probe_of(result, task)["loss"] for task in ("planted", "noise")]
    assert value_of(result, "probe_loss", "pre_other")["value"] == pytest.approx(np.mean(others))
    assert value_of(result, "probe_loss", "pre_lexical")["status"] == "partial"  # one task has no interval


def test_small_budgets_are_summed_up(result):
    rows = probes_of(result, "planted", "top_k")
    assert list(rows["k"]) == [1, 2, 4, 8, 16]
    assert [len(latents.split()) for latents in rows["latents"]] == [1, 2, 4, 8, 16]
    curve = result.curves[result.curves["curve"] == "pre_accuracy"].set_index("x")["y"]
    accuracy = {k: value_of(result, "probe_accuracy", f"pre_k={k}")["value"] for k in (1, 2, 4, 8, 16)}
    assert dict(curve) == pytest.approx(accuracy)
    area = sum((b - a) * (accuracy[a] + accuracy[b]) / 2 for a, b in [(1, 2), (2, 4), (4, 8), (8, 16)]) / 15
    assert value_of(result, "probe_budget", "pre")["value"] == pytest.approx(area)


def test_controls_stand_beside(result, data):
    found = data.controls[0]
    assert probe_of(result, "planted", "linear", "activation")["loss"] == found.linear.cross_entropy
    channel, random = (probe_of(result, "planted", code=code) for code in ("channel", "random"))
    assert 0 <= int(channel["latents"]) < D and 0 <= int(random["latents"]) < 48
    assert found.linear.cross_entropy < random["loss"] < LN2 and channel["loss"] > probe_of(result, "planted")["loss"]
    components = probes_of(result, "planted", "top_k", "component")
    assert components["latents"].iloc[-1] == " ".join(map(str, range(16)))


def test_tasks_that_cannot_be_probed_have_their_reason(result):
    for task, reason in (
        ("one_class", "0 train rows with label 0"),
        ("few", "train rows with label"),
        ("rare", "30 each"),
    ):
        rows = result.probe_results[result.probe_results["task"] == task]
        assert set(rows["status"]) == {"na"} and set(rows["code"]) == {"pre", "post"}
        assert rows["reason"].str.contains(reason).all() and rows["loss"].isna().all()
    assert "one_class" not in USABLE


def test_a_set_without_a_usable_task_gives_status_rows(inputs, data):
    keep = np.isin(data.probe_set.task_r, [3, 4])
    rows = {name: getattr(data.probe_set, name)[keep] for name in vars(data.probe_set) if name.endswith("_r")}
    rows["task_r"] = rows["task_r"] - 3
    some = replace(data.probe_set, **rows, tasks=data.probe_set.tasks[3:])
    x_ud = data.x_ud[np.unique(data.probe_set.places.place_r[keep])]
    empty = METRIC.run(replace(inputs, probe_data=with_controls(some, x_ud)))
    assert set(empty.metrics["status"]) == {"na"} and empty.metrics["reason"].str.contains("no task").all()
    assert set(empty.probe_results["status"]) == {"na"}


def test_latents_that_never_fire_leave_the_share_of_the_labels(evaluation_set, data, tmp_path):
    silent = make_inputs(
        constant_autoencoder(torch.zeros(D), "none"), evaluation_set, tmp_path / "codes", probe_data=data
    )
    found = METRIC.run(silent)
    for task in USABLE:
        row = probe_of(found, task, code="post")
        assert row["status"] == "partial" and "no latent varies" in row["reason"] and row["latents"] == ""
        assert row["loss"] == pytest.approx(LN2, abs=0.05) and row["auc"] == 0.5
        assert set(probes_of(found, task, "top_k", "post")["status"]) == {"partial"}
    assert np.isfinite(value_of(found, "probe_loss", "post")["value"])


def test_results_depend_neither_on_blocks_nor_on_company(inputs, result, made, evaluation_set, tmp_path, monkeypatch):
    other = make_inputs(
        autoencoder("relu", n=24, k=None, normaliser="none", seed=4), evaluation_set, tmp_path / "other",
        probe_data=inputs.probe_data, autoencoder_key="relu", sae_id="b" * 64,
    )  # fmt: skip
    together = METRIC.run_many([other, inputs])[1]
    for name in ("metrics", "probe_results", "unit_stats"):
        pd.testing.assert_frame_equal(getattr(together, name), getattr(result, name), check_exact=True)
    monkeypatch.setattr(columns, "_BLOCK_VALUES", 500)
    monkeypatch.setattr(search, "_BLOCK_VALUES", 4000)
    parts = METRIC.run(inputs)
    pd.testing.assert_frame_equal(parts.probe_results, result.probe_results, rtol=1e-6)


def test_a_screen_finds_what_all_fits_find(inputs, result):
    every = METRIC.run(replace(inputs, parameters={"screen": "all"}))
    few = METRIC.run(replace(inputs, parameters={"screen": 5}))
    for task in ("planted", "token"):
        assert probe_of(every, task)["latents"] == probe_of(few, task)["latents"]
        assert probe_of(every, task)["loss"] == pytest.approx(probe_of(result, task)["loss"], abs=1e-9)


def test_codes_and_sizes_can_be_chosen(inputs):
    found = METRIC.run(replace(inputs, parameters={"codes": ["post"], "k": [2], "permutations": 1, "ridge": 10}))
    assert set(found.probe_results.query("probe == 'permuted'")["code"]) == {"post", "activation"}
    assert set(found.probe_results.query("probe == 'top_k'")["k"]) == {2}
    assert value_of(found, "probe_budget", "post")["status"] == "na"
    assert not found.metrics["variant"].str.startswith("pre").any()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"k": [4, 2]}, "rising list"), ({"k": 4}, "rising list"), ({"k": [0, 1]}, "from 1 to 64"),
        ({"k": []}, "rising"),
        ({"codes": ["middle"]}, "codes 'middle' is not one of pre, post"), ({"screen": 0}, "count or 'all'"),
        ({"screen": "some"}, "'all'"), ({"ridge": 0}, "ridge takes a number"), ({"permutations": 2.5}, "whole number"),
        ({"tasks": 3}, "folder or a glob"), ({"tasks": ""}, "embedded"), ({"latents": 3}, "unknown"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_before_any_work(parameters, says):
    with pytest.raises(EvaluationError, match=says):
        METRIC.check_parameters(parameters)
    METRIC.check_parameters({"tasks": "embedded", "k": [1, 2], "screen": "all", "ridge": 0.5, "codes": ["pre"]})


def test_probes_of_another_site_or_none_are_refused(inputs):
    with pytest.raises(EvaluationError, match="pass it in as probe_data"):
        METRIC.run(replace(inputs, probe_data=None))
    with pytest.raises(EvaluationError, match="are they of one site"):
        METRIC.run(replace(inputs, probe_data=planted(D + 1)))


def test_a_probe_set_survives_its_artefact(subject, data, tmp_path):
    short = data.probe_set.ids_cl % VOCAB
    with open_draft(tmp_path / "set") as draft:
        summary = build_probe_data(draft, lambda: subject, SITE, replace(data.probe_set, ids_cl=short), batch=7, seed=0)
        audit = audit_probe_data(draft).iloc[0]
        artefact = draft.publish(summary)
    found = ProbeData.open(artefact)
    assert found.probe_set.fingerprint() == replace(data.probe_set, ids_cl=short).fingerprint()
    assert found.probe_set.dropped == data.probe_set.dropped and found.reasons == data.reasons
    context_u, position_u, _ = found.probe_set.places
    out = subject.run(torch.from_numpy(short.astype(np.int64)), [SITE])[SITE]
    np.testing.assert_allclose(found.x_ud, out[context_u, position_u], atol=1e-5)
    assert sorted(found.controls) == [0, 1, 2] and found.controls[1].lexical
    assert summary == {"tasks": 5, "unusable": 2, "dropped": 1, "rows": 3203, "places": 800, "d": D}
    assert (audit["damage"], audit["tasks"], audit["usable"], audit["non_finite"]) == ("", 5, 3, 0)
    assert audit["documents_in_both"] == 0


def test_damage_and_mixed_splits_are_seen(subject, data, tmp_path):
    mixed = replace(data.probe_set, test_r=data.probe_set.position_r % 2 == 0)
    with open_draft(tmp_path / "set") as draft:
        artefact = draft.publish(build_probe_data(draft, lambda: subject, SITE, mixed, batch=64, seed=0))
    assert audit_probe_data(artefact)["documents_in_both"].iloc[0] == N_DOCUMENTS
    shard = next(path for path in (artefact.path / "activations" / "c").rglob("*") if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    assert "crc32c" in audit_probe_data(artefact)["damage"].iloc[0]


def test_rows_stand_in_proportion_to_the_context():
    assert (sampling_for(256, 3).first_position, sampling_for(256, 3).first_position_long_range) == (16, 64)
    assert (sampling_for(64, 3).first_position, sampling_for(64, 3).first_position_long_range) == (4, 16)
    assert sampling_for(2, 0).context == 2


def test_tasks_of_labelled_lines(tmp_path):
    lines = [
        f'{{"text": "a{"b" * i}", "label": {i % 2}, "split": "{"test" if i > 30 else "train"}"}}' for i in range(60)
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))

    class Letters:
        bos_id, pad_id = None, 0

        def encode_batch(self, texts):
            return [[ord(letter) for letter in text] for text in texts]

    subject = SubjectConfig(alias="x", id="nowhere")
    found = make_probe_set("odd.jsonl", subject, Letters(), context=8, seed=0, root=tmp_path)
    assert [task.name for task in found.tasks] == ["odd"] and found.ids_cl.shape[1] == 8
    with pytest.raises(PipelineError, match="does not exist"):
        make_probe_set("even.jsonl", subject, Letters(), context=8, seed=0, root=tmp_path)
