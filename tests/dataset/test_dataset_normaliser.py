from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import residual_rows

from sae_pipeline.dataset import Normaliser, default_normaliser
from sae_pipeline.store import PipelineError

NAMES = ["paper", "layer_norm", "rms", "mean_norm", "none"]


def fit(name: str, x: torch.Tensor) -> Normaliser:
    norm = x.double().norm(dim=-1)
    return Normaliser.fit(name, x.shape[-1], mean_norm=float(norm.mean()), mean_square_norm=float(norm.square().mean()))


@pytest.mark.parametrize("name", NAMES)
def test_what_each_normaliser_promises(name: str) -> None:
    x = residual_rows(500, 24)
    u, scale = fit(name, x).normalise(x)
    norm = u.double().norm(dim=-1)
    assert scale.mean.shape == scale.norm.shape == (500, 1) and u.shape == x.shape and u.dtype == torch.float32
    if name in ("paper", "layer_norm"):
        target = torch.full((500,), 24**0.5 if name == "layer_norm" else 1.0, dtype=torch.float64)
        torch.testing.assert_close(norm, target, rtol=1e-6, atol=0)
        torch.testing.assert_close(u.double().sum(-1), torch.zeros(500, dtype=torch.float64), rtol=0, atol=1e-5)
        direction = torch.nn.functional.layer_norm(x.double(), (24,), eps=0) / 24**0.5
        torch.testing.assert_close(u.double() / norm[:, None], direction, rtol=0, atol=2e-6)
    elif name == "rms":
        assert float(norm.square().mean()) == pytest.approx(24, rel=1e-6)
    elif name == "mean_norm":
        assert float(norm.mean()) == pytest.approx(24**0.5, rel=1e-6)
    else:
        assert torch.equal(u, x)
    if name not in ("paper", "layer_norm"):
        torch.testing.assert_close(u / u[0, 0], x / x[0, 0])  # one scalar for all rows: directions and ratios stay


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(2, 40), st.floats(-6, 6), st.floats(-4, 2), st.integers(0, 99))
def test_the_round_trip_is_exact_to_a_millionth(name: str, d: int, size: float, offset: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(20, d, generator=g) + 10**offset) * 10**size
    normaliser = fit(name, x)
    again = normaliser.denormalise(*normaliser.normalise(x))
    assert float(((again - x).norm(dim=-1) / x.norm(dim=-1)).max()) < 1e-6


@pytest.mark.parametrize("name", ["paper", "layer_norm"])
def test_constant_rows_have_no_direction_and_come_back(name: str) -> None:
    x = torch.stack([torch.zeros(48), torch.full((48,), 0.1), torch.full((48,), -7e4), torch.full((48,), 3e-30)])
    normaliser = Normaliser.fit(name, 48, mean_norm=1.0, mean_square_norm=1.0)
    u, scale = normaliser.normalise(x)
    assert torch.isfinite(u).all() and float((u.norm(dim=-1) / x.norm(dim=-1).clamp_min(1e-30)).max()) < 1e-6
    torch.testing.assert_close(normaliser.denormalise(u, scale), x, rtol=1e-7, atol=0)


def test_batches_of_any_shape_are_normalised_row_by_row() -> None:
    x = residual_rows(60, 8)
    for name in NAMES:
        normaliser = fit(name, x)
        whole, scale = normaliser.normalise(x.view(3, 4, 5, 8))
        assert scale.norm.shape == (3, 4, 5, 1)
        rows = torch.cat([normaliser.normalise(x[i : i + 1])[0] for i in range(60)])
        torch.testing.assert_close(whole.view(60, 8), rows, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name: str) -> None:
    normaliser = fit(name, residual_rows(60, 8))
    assert Normaliser.from_config(json.loads(json.dumps(normaliser.to_config()))) == normaliser


def test_defaults_and_refusals() -> None:
    assert [default_normaliser("layernorm", where) for where in ("resid_pre", "resid_mid", "resid_post")] == [
        "paper"
    ] * 3
    assert default_normaliser("layernorm", "mlp_out") == default_normaliser("rmsnorm", "resid_post") == "rms"
    with pytest.raises(PipelineError, match="unknown"):
        Normaliser("batch_norm", 4)
    with pytest.raises(PipelineError, match="all rows zero"):
        Normaliser.fit("mean_norm", 4, mean_norm=0.0, mean_square_norm=0.0)
