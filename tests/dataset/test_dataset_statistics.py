from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import contexts_of, publish_activations, publish_dataset, residual_rows
from scipy.optimize import minimize

from sae_pipeline.dataset import Statistics, audit_frame, build_dataset, geometric_median
from sae_pipeline.dataset.build import read_rows, sample_of
from sae_pipeline.store import Draft, PipelineError

D, N = 12, 997


def two_pass(x_rd: np.ndarray, name: str) -> np.ndarray:
    """Normalised rows by the definitions, in float64."""
    x = x_rd.astype(np.float64)
    norm = np.linalg.norm(x, axis=1)
    if name in ("paper", "layer_norm"):
        centred = x - x.mean(1, keepdims=True)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        return unit * np.sqrt(D) if name == "layer_norm" else unit
    return x * {"rms": np.sqrt(D / (norm**2).mean()), "mean_norm": np.sqrt(D) / norm.mean(), "none": 1.0}[name]


@pytest.mark.parametrize("name", ["paper", "layer_norm", "rms", "mean_norm", "none"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_statistics_equal_two_passes_in_float64(tmp_path: Path, name: str, dtype: str) -> None:
    x = residual_rows(N, D).to(getattr(torch, dtype))
    activations = publish_activations(tmp_path / "a", x, 100, dtype)
    dataset = publish_dataset(tmp_path / "d", activations, normaliser=name)
    raw, s = x.double().numpy(), dataset.statistics
    expected = two_pass(raw, name)
    mean = expected.mean(0)
    np.testing.assert_allclose(s.mean, mean, rtol=1e-9, atol=1e-12 * np.abs(mean).max())
    np.testing.assert_allclose(s.total_variance, ((expected - mean) ** 2).sum(1).mean(), rtol=1e-9)
    np.testing.assert_allclose(s.mean_norm, np.linalg.norm(raw, axis=1).mean(), rtol=1e-9)
    np.testing.assert_allclose(s.mean_square_norm, (raw**2).sum(1).mean(), rtol=1e-9)
    assert (s.count, s.absmax, s.non_finite, s.constant_channels) == (N, np.abs(raw).max(), 0, 0)
    assert s.sample_rows == N
    np.testing.assert_allclose(s.geometric_median, geometric_median(expected), rtol=0, atol=1e-6 * np.abs(mean).max())


def test_statistics_survive_json(tmp_path: Path) -> None:
    s = publish_dataset(tmp_path / "d", publish_activations(tmp_path / "a", residual_rows(50, 4), 20)).statistics
    again = Statistics.from_json(json.loads(json.dumps(s.to_json())))
    for name, value in vars(s).items():
        np.testing.assert_array_equal(getattr(again, name), value)


@pytest.mark.parametrize("seed", range(4))
def test_geometric_median_is_the_minimum_scipy_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((200, 5)) ** 3 + 100 * random.standard_normal(5)  # heavy tails, far from the origin

    def cost(y: np.ndarray) -> float:
        return float(np.linalg.norm(x - y, axis=1).sum())

    def gradient(y: np.ndarray) -> np.ndarray:
        return ((y - x) / np.linalg.norm(x - y, axis=1, keepdims=True)).sum(0)

    found = geometric_median(x)
    best = minimize(cost, x.mean(0), jac=gradient, method="BFGS", options={"gtol": 1e-9, "maxiter": 1000})
    np.testing.assert_allclose(found, best.x, atol=1e-5)
    assert cost(found) <= best.fun * (1 + 1e-12)
    assert np.abs(x.mean(0) - found).max() > 0.01  # it is not the mean


def test_geometric_median_that_lies_on_a_row() -> None:
    star = np.array([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -2]])  # the mean is not the centre, the median is
    np.testing.assert_allclose(geometric_median(star), [0, 0], atol=1e-7)
    heavy = np.array([[3.0, 4]] * 5 + [[0.0, 0], [9, 9]])
    np.testing.assert_allclose(geometric_median(heavy), [3, 4], atol=1e-7)
    np.testing.assert_allclose(geometric_median(np.full((4, 3), 2.5)), [2.5] * 3)


@pytest.mark.parametrize(("n_rows", "n"), [(10, 20), (100, 30), (5000, 40), (10**12, 500)])
def test_the_sample_holds_distinct_rows_of_the_whole_range(n_rows: int, n: int) -> None:
    rows = sample_of(n_rows, n, seed=3)
    assert len(rows) == len(set(rows.tolist())) == min(n, n_rows)
    assert rows.min() >= 0 and rows.max() < n_rows
    np.testing.assert_array_equal(rows, sample_of(n_rows, n, seed=3))
    if n >= 30:
        assert abs(rows.mean() / n_rows - 0.5) < 0.2
        assert rows.tolist() != sample_of(n_rows, n, seed=4).tolist() and rows.tolist() != sorted(rows.tolist())


def test_scattered_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    x = residual_rows(300, 4).half()
    acts = publish_activations(tmp_path / "a", x, 128, "float16").array("acts")
    rows = np.random.default_rng(0).permutation(300)[:77]
    seen: list[float] = []

    class Recorder:
        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            seen.append(done / total)

    np.testing.assert_array_equal(read_rows(acts, rows, Recorder()), x[torch.from_numpy(rows)].float().numpy())
    assert seen == sorted(seen) and seen[-1] == 1


def test_the_sample_is_normalised_rows_of_the_dataset(tmp_path: Path) -> None:
    x = residual_rows(400, D)
    dataset = publish_dataset(tmp_path / "d", publish_activations(tmp_path / "a", x, 128), sample_rows=50)
    expected = dataset.normaliser.normalise(x)[0][torch.from_numpy(sample_of(400, 50, 5))]
    assert torch.equal(dataset.sample, expected) and dataset.statistics.sample_seed == 5
    np.testing.assert_array_equal(dataset.statistics.geometric_median, geometric_median(expected.numpy()))


def test_audit_frame_tells_good_rows_from_bad(tmp_path: Path) -> None:
    good = publish_dataset(tmp_path / "d", publish_activations(tmp_path / "a", residual_rows(300, D), 100))
    row = audit_frame(good.artefact).iloc[0]
    assert row["rows"] == row["rows_expected"] == 300 and row["non_finite"] == row["sample_non_finite"] == 0
    assert row["constant_channels"] == 0 and row["round_trip_error"] < 1e-6 and row["n_shards"] == 3
    assert row["same_context_ratio"] == pytest.approx(1) and row["same_context_excess"] == pytest.approx(1)
    assert 0.9 < row["total_variance"] + (good.statistics.mean**2).sum() < 1.1 and row["normaliser"] == "paper"
    x = residual_rows(300, D)
    x[:, 3] = 2.0
    x[7, 0] = float("nan")
    x[250, 5] = float("inf")
    bad = publish_dataset(tmp_path / "d2", publish_activations(tmp_path / "a2", x, 100))
    row = audit_frame(bad.artefact).iloc[0]
    assert row["rows"] == 298 and row["rows_expected"] == 300
    assert row["non_finite"] == 2 and row["sample_non_finite"] > 0 and row["constant_channels"] == 1
    assert np.isnan(row["round_trip_error"])


def test_audit_frame_reads_a_draft_with_the_same_columns(tmp_path: Path) -> None:
    activations = publish_activations(tmp_path / "a", residual_rows(64, D), 32)
    with Draft.open(tmp_path / "d", stage="dataset", key="k", identity="d" * 64, lineage={}) as draft:
        summary = build_dataset(draft, activations, normaliser="rms", seed=1, **contexts_of(64, 8, 3))
        frame = audit_frame(draft)
    assert list(frame.columns) == [
        *("rows", "rows_expected", "non_finite", "constant_channels", "total_variance", "mean_norm", "absmax"),
        *("normaliser", "factor", "sample_rows", "sample_non_finite", "round_trip_error"),
        *("same_context_ratio", "same_document_ratio", "same_context_excess", "resident_shards", "n_shards"),
    ]
    assert json.loads(json.dumps(summary)) == summary and summary["rows"] == 64


def test_bad_input_is_refused_with_a_way_out(tmp_path: Path) -> None:
    activations = publish_activations(tmp_path / "a", residual_rows(64, D), 32)
    zeros = publish_activations(tmp_path / "z", torch.zeros(64, D), 32)
    with Draft.open(tmp_path / "d", stage="dataset", key="k", identity="d" * 64, lineage={}) as draft:
        contexts = contexts_of(64, 8, 3)
        with pytest.raises(PipelineError, match="use one of paper, layer_norm"):
            build_dataset(draft, activations, normaliser="zscore", seed=1, **contexts)
        with pytest.raises(PipelineError, match="all rows zero"):
            build_dataset(draft, zeros, normaliser="rms", seed=1, **contexts)
        with pytest.raises(PipelineError, match="pass the contexts the activations were made from"):
            build_dataset(draft, activations, normaliser="rms", seed=1, **contexts_of(63, 8, 3))
