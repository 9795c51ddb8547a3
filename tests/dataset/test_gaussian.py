"""A null dataset: draws from a Gaussian with the exact mean and covariance of the normalised rows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import contexts_of, publish_activations, publish_dataset, residual_rows
from safetensors.numpy import load_file

from sae_pipeline.dataset import Dataset, Gaussian, Normaliser, audit_frame, build_dataset
from sae_pipeline.dataset.covariance import Covariance, covariance_of
from sae_pipeline.dataset.gaussian import gaussian_checks, standard_normals, symmetric_root
from sae_pipeline.store import Artefact, Draft

D, N = 12, 997
NULL = "gaussian_cov"
FIRST = [-0.7493405137326089, 0.9676919031993816]  # of the seeds (1, 2): no version may give others


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return publish_activations(tmp_path_factory.mktemp("acts") / "a", residual_rows(N, D), 100)


@pytest.fixture(scope="module")
def dataset(activations: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return publish_dataset(tmp_path_factory.mktemp("null") / "d", activations, null=NULL)


def stored(dataset: Dataset) -> dict[str, np.ndarray]:
    return load_file(dataset.artefact.file("gaussian.safetensors"))


@pytest.mark.parametrize("name", ["paper", "layer_norm", "rms", "mean_norm", "none"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mean_and_covariance_equal_two_passes_in_float64(tmp_path: Path, name: str, dtype: str) -> None:
    x = residual_rows(N, D).to(getattr(torch, dtype))
    null = publish_dataset(
        tmp_path / "d", publish_activations(tmp_path / "a", x, 100, dtype), normaliser=name, null=NULL
    )
    normaliser = Normaliser.from_config(null.artefact.read_json("normaliser.json"))
    u = normaliser.normalise(x.float())[0].double().numpy()
    sigma = (u - u.mean(0)).T @ (u - u.mean(0)) / N
    found = stored(null)
    np.testing.assert_allclose(found["mean"], u.mean(0), rtol=0, atol=1e-9 * np.abs(u.mean(0)).max())
    np.testing.assert_allclose(found["covariance"], sigma, rtol=0, atol=1e-9 * np.abs(sigma).max())
    np.testing.assert_allclose(found["root"] @ found["root"], sigma, rtol=0, atol=1e-12 * np.abs(sigma).max())
    assert normaliser.name == name and null.normaliser == Normaliser("none", D)


def test_the_pass_over_many_blocks_is_that_over_one() -> None:
    """Far off centre, where sums of squares would lose every digit."""
    u = np.random.default_rng(0).standard_normal((N, 5)) + 1e7
    whole = Covariance.of(u)
    for cut in ([1, 2, 3], [100, 500], [0, N // 2, N], [N - 1]):
        parts = Covariance.empty(5)
        for a, b in pairwise([0, *cut, N]):
            parts = parts.merge(Covariance.of(u[a:b]))
        assert parts.count == N
        np.testing.assert_allclose(parts.mean_d, whole.mean_d, rtol=1e-14)
        np.testing.assert_allclose(parts.sigma_dd, np.cov(u.T, bias=True), rtol=0, atol=1e-9)


@pytest.mark.parametrize("normaliser", ["paper", "rms"])
def test_many_draws_have_the_mean_and_covariance_within_sampling_error(
    activations: Artefact, tmp_path: Path, normaliser: str
) -> None:
    null = publish_dataset(tmp_path / "d", activations, normaliser=normaliser, null=NULL)
    m, found = 200_000, stored(null)
    mean, sigma = found["mean"], found["covariance"]
    u = torch.cat([batch.x_bd for batch in null.batches(2000, 0, m // 2000)]).double().numpy()
    variance = np.diag(sigma)
    assert np.all(np.abs(u.mean(0) - mean) < 5 * np.sqrt(variance / m))
    off = u - mean
    error = np.sqrt((np.outer(variance, variance) + sigma**2) / m)
    assert np.all(np.abs(off.T @ off / m - sigma) < 5 * error)
    whitened = off @ np.linalg.pinv(found["root"])
    directions = whitened @ np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0]
    directions = directions[:, directions.std(0) > 0.5]  # what `paper` leaves no variance in is no direction
    spread = directions.std(0)
    assert np.all(np.abs((directions**4).mean(0) / spread**4 - 3) < 5 * np.sqrt(24 / m))
    assert np.all(np.abs((directions**3).mean(0) / spread**3) < 5 * np.sqrt(6 / m))
    following = (directions[1:] * directions[:-1]).mean(0) / spread**2
    assert np.all(np.abs(following) < 5 / np.sqrt(m))


def test_a_singular_covariance_keeps_its_null_space(dataset: Dataset) -> None:
    """`paper` takes the mean over channels out of every row; no draw may have one."""
    found = stored(dataset)
    assert np.linalg.eigvalsh(found["covariance"])[0] < 1e-8 * np.trace(found["covariance"])
    u = next(dataset.batches(4096, 0, 1)).x_bd.double()
    assert u.mean(1).abs().max() < 1e-6 * u.norm(dim=1).mean()
    flat = symmetric_root(np.diag([4.0, 0.0, -1e-17, 9.0]))
    np.testing.assert_allclose(flat, np.diag([2.0, 0, 0, 3.0]), atol=1e-15)
    assert not symmetric_root(np.zeros((3, 3))).any()


def steps(dataset: Dataset, batch: int, first: int, n: int, prefetch: int = 0) -> list[torch.Tensor]:
    found = list(dataset.batches(batch, first, n, prefetch=prefetch))
    assert [item.step for item in found] == list(range(first, first + n))
    assert all(item.x_bd.shape == (batch, D) and item.x_bd.dtype == torch.float32 for item in found)
    return [item.x_bd for item in found]


@pytest.mark.parametrize("batch", [1, 64, 333, 1000])
def test_a_batch_depends_on_its_step_alone(dataset: Dataset, batch: int) -> None:
    whole = steps(dataset, batch, 0, 20)
    for prefetch, first in ((0, 1), (1, 19), (2, 0), (5, 10)):
        for a, b in zip(steps(dataset, batch, first, 20 - first, prefetch), whole[first:], strict=True):
            assert torch.equal(a, b)


def test_a_draw_depends_on_seed_and_place_alone(dataset: Dataset, activations: Artefact, tmp_path: Path) -> None:
    whole = torch.cat(steps(dataset, 1024, 0, 3))
    assert torch.equal(torch.cat(steps(dataset, 96, 0, 32)), whole)
    assert torch.equal(dataset.gaussian.rows("training", 700, 1300), whole[700:1300])
    assert len(torch.unique(whole, dim=0)) == len(whole)
    again = Dataset.open(dataset.artefact, activations)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(torch.cat(steps(again, 1024, 0, 3, prefetch=2)), whole)
    finally:
        torch.set_num_threads(before)
    other = publish_dataset(tmp_path / "d", activations, null=NULL, seed=6)
    assert np.array_equal(stored(other)["covariance"], stored(dataset)["covariance"])
    assert not torch.isclose(torch.cat(steps(other, 1024, 0, 3)), whole).all(dim=1).any()


def test_streams_share_no_draw(dataset: Dataset) -> None:
    streams = [dataset.gaussian.rows(name, 0, 500) for name in ("training", "held_out", "sample")]
    assert len(torch.unique(torch.cat(streams), dim=0)) == 1500
    assert torch.equal(dataset.sample, dataset.gaussian.rows("sample", 0, N))


def test_the_table_of_normals_can_be_entered_anywhere_and_stays_as_it_is() -> None:
    seeds = np.random.SeedSequence((1, 2))
    whole = standard_normals(seeds, 0, 50, 7)
    for start, n in ((0, 1), (3, 9), (49, 1)):
        np.testing.assert_array_equal(standard_normals(seeds, start, n, 7), whole[start : start + n])
    np.testing.assert_allclose(whole[:2, 0], FIRST, rtol=1e-12)
    assert standard_normals(seeds, 5, 0, 7).shape == (0, 7)


def test_its_audit_judges_draws_and_names_no_order(dataset: Dataset) -> None:
    row = audit_frame(dataset.artefact).iloc[0]
    assert row["null"] == NULL and row["covariance_rows"] == row["rows"] == row["rows_expected"] == N
    assert row["variance_error"] < 1e-6 and row["root_error"] < 1e-12
    assert 0.1 < row["sample_mean_error"] < 5 and 0.1 < row["sample_covariance_error"] < 5
    assert {"round_trip_error", "same_context_ratio"}.isdisjoint(row.index)
    assert dataset.artefact.summary["null"] == NULL


def test_wrong_draws_fail_their_checks(activations: Artefact) -> None:
    acts, normaliser = activations.array("acts"), Normaliser("paper", D)
    covariance = covariance_of(acts, normaliser)
    right, total = Gaussian.of(covariance, 0), float(np.trace(covariance.sigma_dd))

    def checks(mean: np.ndarray, root: np.ndarray, variance: float = total) -> dict[str, float]:
        sample = Gaussian(mean, root, 0).rows("sample", 0, 20_000).numpy()
        return gaussian_checks(right, covariance, sample, variance)

    good = checks(right.mean_d, right.root_dd)
    assert good["sample_mean_error"] < 10 and good["sample_covariance_error"] < 10 and good["variance_error"] == 0
    assert checks(right.mean_d + 0.05, right.root_dd)["sample_mean_error"] > 30
    assert checks(right.mean_d, 1.2 * right.root_dd)["sample_covariance_error"] > 30
    assert checks(right.mean_d, np.diag(np.diag(right.root_dd)))["sample_covariance_error"] > 30
    assert checks(right.mean_d, right.root_dd, 1.1 * total)["variance_error"] > 0.09
    halved = Gaussian(right.mean_d, right.root_dd / 2, 0)
    assert gaussian_checks(halved, covariance, right.rows("sample", 0, 10).numpy(), total)["root_error"] > 0.5


def test_bad_rows_are_left_out_of_the_moments_and_told(tmp_path: Path) -> None:
    x = residual_rows(300, D)
    x[7, 0], x[250, 5] = float("nan"), float("inf")
    null = publish_dataset(tmp_path / "d", publish_activations(tmp_path / "a", x, 100), null=NULL)
    row = audit_frame(null.artefact).iloc[0]
    assert row["covariance_rows"] == row["rows"] == 298 and row["non_finite"] == 2
    assert row["variance_error"] < 1e-6 and np.isfinite(stored(null)["covariance"]).all()


def test_rows_that_never_vary_have_no_spread_and_break_nothing(tmp_path: Path) -> None:
    x = torch.arange(D, dtype=torch.float32).repeat(64, 1)
    null = publish_dataset(tmp_path / "d", publish_activations(tmp_path / "a", x, 32), null=NULL)
    row = audit_frame(null.artefact).iloc[0]
    assert row["total_variance"] < 1e-12 and row["sample_non_finite"] == 0


def test_a_real_dataset_is_made_as_before(activations: Artefact, tmp_path: Path) -> None:
    real = publish_dataset(tmp_path / "d", activations)
    assert real.gaussian is None and real.normaliser.name == "paper" and "null" not in real.artefact.summary
    assert not real.artefact.exists("gaussian.safetensors") and not real.artefact.exists("null.json")


def test_the_summary_is_json(activations: Artefact, tmp_path: Path) -> None:
    with Draft.open(tmp_path / "d", stage="dataset", key="k", identity="d" * 64, lineage={}) as draft:
        options = {"normaliser": "paper", "seed": 1, **contexts_of(N, 8, 3)}
        seen: list[float] = []

        class Recorder:
            def update(self, done: float, total: float, unit: str, **info: object) -> None:
                seen.append(done / total)

        summary = build_dataset(draft, activations, null=NULL, progress=Recorder(), **options)
    assert json.loads(json.dumps(summary)) == summary and seen and seen[-1] == 1
