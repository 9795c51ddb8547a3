import numpy as np
import pandas as pd
import pytest

from sae_pipeline.evaluation import EvaluationError, compare_paired
from sae_pipeline.evaluation.compare import COLUMNS, compare
from sae_pipeline.evaluation.tables import frame

A, B, RESEED, OTHER = "topk-n64-k4", "topk-n128-k4", "topk-n64-k4-s1", "relu-n64-l0.1"
SEEDS = {A: 0, B: 0, RESEED: 1, OTHER: 0}


def stats_of(key, metric, num_u, den_u):
    rows = [
        {
            "autoencoder": key,
            "sae_id": key,
            "metric": metric,
            "variant": "all",
            "unit_id": u,
            "num": n,
            "den": d,
            "n": 1,
        }
        for u, (n, d) in enumerate(zip(num_u, den_u, strict=True))
    ]
    return frame("unit_stats", rows)


def row_of(key, metric, value, **columns):
    usual = {
        "autoencoder": key, "sae_id": key, "site": "s", "evaluation_id": "e", "metric": metric, "variant": "all",
        "value": value, "unit": "1", "better": "lower", "se": 0.01, "n_units": 40, "status": "ok", "metric_version": 1,
    }  # fmt: skip
    return usual | columns


@pytest.fixture
def tables():
    """NMSE of four autoencoders over 40 documents of different sizes, alike but for an offset; L0 without documents."""
    rng = np.random.default_rng(0)
    den_u = rng.uniform(1, 50, 40)
    common_u = rng.normal(0.3, 0.1, 40)
    stats, rows = [], []
    for key, offset in ((A, 0.0), (B, -0.05), (RESEED, 0.01), (OTHER, 0.0)):
        num_u = den_u * (common_u + offset + rng.normal(0, 0.01, 40))
        stats.append(stats_of(key, "nmse", num_u, den_u))
        rows += [row_of(key, "nmse", num_u.sum() / den_u.sum()), row_of(key, "l0", 4.0, better="none", se=np.nan)]
    saes = pd.DataFrame([{"autoencoder": key, "sae_id": key, "seed": seed} for key, seed in SEEDS.items()])
    return {"saes": saes, "metrics": frame("metrics", rows), "unit_stats": pd.concat(stats, ignore_index=True)}


def test_differences_are_paired_over_documents(tables):
    found = compare(tables, A, B, resamples=500, seed=3)
    assert list(found.columns) == list(COLUMNS) and set(found["metric"]) == {"nmse", "l0"}
    nmse = found[found["metric"] == "nmse"].iloc[0]
    of_a, of_b = (tables["unit_stats"].query("autoencoder == @key") for key in (A, B))
    paired = compare_paired(of_a, of_b, 500, 3)
    for name, value in vars(paired).items():
        assert nmse[name] == value
    assert nmse["difference"] == pytest.approx(nmse["a"] - nmse["b"])
    assert 0 < nmse["ci_lo"] < 0.05 < nmse["ci_hi"] and nmse["se"] < 0.01 / 2  # far below that of either alone
    assert nmse["p_better"] == 0


def test_noise_of_seeds_and_of_documents_stand_apart_and_decide_together(tables):
    nmse = compare(tables, A, B, resamples=500, seed=0).query("metric == 'nmse'").iloc[0]
    values = tables["metrics"].query("metric == 'nmse'").set_index("autoencoder")["value"]
    spread = abs(values[A] - values[RESEED]) / np.sqrt(2)
    assert nmse["se_seed"] == pytest.approx(spread) and nmse["n_seeds"] == 3
    assert nmse["se_eval"] == pytest.approx(0.01)
    assert nmse["min_reliable_diff"] == pytest.approx(1.96 * np.sqrt(2 * (spread**2 + 0.01**2)))
    assert nmse["verdict"] == "b"
    reseeded = compare(tables, A, RESEED, resamples=500, seed=0).query("metric == 'nmse'").iloc[0]
    assert reseeded["ci_hi"] < 0 and reseeded["verdict"] == "tie"  # a sure difference that another seed would make too
    alone = compare(tables, B, OTHER, resamples=500, seed=0).query("metric == 'nmse'").iloc[0]
    assert np.isnan(alone["se_seed"]) and alone["min_reliable_diff"] == pytest.approx(1.96 * np.sqrt(2) * 0.01)


def test_a_figure_without_a_better_direction_has_no_verdict(tables):
    l0 = compare(tables, A, B, resamples=100, seed=0).query("metric == 'l0'").iloc[0]
    assert l0["verdict"] == "" and l0["difference"] == 0 and l0["n_units"] == 0
    assert l0[["p_better", "ci_lo", "min_reliable_diff"]].isna().all()


def test_higher_may_be_better(tables):
    tables["metrics"]["better"] = tables["metrics"]["better"].replace("lower", "higher")
    nmse = compare(tables, A, B, resamples=500, seed=0).query("metric == 'nmse'").iloc[0]
    assert nmse["verdict"] == "a" and nmse["p_better"] == 1


@pytest.mark.parametrize(("a", "b", "message"), [(A, "nothing", "there are topk"), (A, A, "with itself")])
def test_what_cannot_be_compared_is_refused(tables, a, b, message):
    with pytest.raises(EvaluationError, match=message):
        compare(tables, a, b, resamples=10, seed=0)
