"""Moments against two-pass float64 formulas written out in numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.activations import Moments


def two_pass(x_rd: npt.NDArray[Any]) -> dict[str, Any]:
    finite = np.isfinite(x_rd).all(axis=1)
    x = x_rd[finite].astype(np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return {
        "count": len(x),
        "mean": x.mean(axis=0),
        "m2": ((x - x.mean(axis=0)) ** 2).sum(axis=0),
        "norm_sum": np.linalg.norm(x, axis=1).sum(),
        "sq_sum": (x**2).sum(),
        "unit_mean": unit.mean(axis=0),
        "unit_m2": ((unit - unit.mean(axis=0)) ** 2).sum(),
        "centred_norm_sum": norm.sum(),
        "absmax": np.abs(x).max(),
        "non_finite": int((~finite).sum()),
    }


def assert_equal(got: Moments, expected: dict[str, Any], rtol: float = 1e-9) -> None:
    for name, value in expected.items():
        scale = np.max(np.abs(value)) if np.size(value) else 0.0
        np.testing.assert_allclose(getattr(got, name), value, rtol=rtol, atol=rtol * scale, err_msg=name)


def rows(n: int, d: int = 24, *, offset: float = 0.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(n)
    scales = np.exp(rng.normal(size=d))
    return (rng.normal(size=(n, d)) * scales + offset * rng.normal(size=d)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 1023, 1025, 5000])
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_moments_equal_two_passes_in_float64(n: int, offset: float) -> None:
    x_rd = rows(n, offset=offset)
    expected = two_pass(x_rd)
    got = Moments.of(torch.from_numpy(x_rd))
    # A spread of nothing is rounding noise in the reference.
    if n == 1:
        assert not got.m2.any() and got.unit_m2 == 0
        expected = {name: value for name, value in expected.items() if name not in ("m2", "unit_m2")}
    assert_equal(got, expected)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_any_cut_merges_to_the_moments_of_the_whole(sizes: list[int], seed: int) -> None:
    x_rd = np.random.default_rng(seed).normal(size=(sum(sizes) + 1, 5)).astype(np.float32) + 100
    cuts = np.cumsum(sizes)
    parts = [Moments.of(torch.from_numpy(part)) for part in np.split(x_rd, cuts)]
    merged = Moments.total(parts, d=5)
    if len(x_rd) > 1:
        assert_equal(merged, two_pass(x_rd))
    assert merged.count == len(x_rd)


def test_rows_that_are_not_finite_are_counted_and_left_out() -> None:
    x_rd = rows(2000)
    x_rd[[3, 1500], [0, 7]] = [np.nan, -np.inf]
    x_rd[1024:1100] = np.inf
    assert_equal(Moments.of(torch.from_numpy(x_rd)), two_pass(x_rd))
    nothing = Moments.of(torch.full((4, 3), torch.nan))
    assert (nothing.count, nothing.non_finite, nothing.absmax) == (0, 4, 0.0)
    assert_equal(nothing.merge(Moments.of(torch.from_numpy(rows(50, 3)))), two_pass(rows(50, 3)) | {"non_finite": 4})


def test_a_dimension_that_never_changes_has_exactly_no_spread() -> None:
    x_rd = rows(3000)
    x_rd[:, 5] = np.float32(0.1)
    m2 = Moments.of(torch.from_numpy(x_rd)).m2
    assert m2[5] == 0
    assert np.delete(m2, 5).min() > 0


def test_constant_rows_have_no_direction() -> None:
    got = Moments.of(torch.full((7, 4), 2.5))
    assert not got.unit_mean.any() and got.unit_m2 == got.centred_norm_sum == 0
    assert got.norm_sum == pytest.approx(7 * 5.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_moments_are_those_of_the_stored_values(dtype: torch.dtype) -> None:
    stored = torch.from_numpy(rows(300)).to(dtype)
    assert_equal(Moments.of(stored), two_pass(stored.double().numpy()))


def test_json_keeps_every_bit() -> None:
    moments = Moments.of(torch.from_numpy(rows(333)))
    back = Moments.from_json(json.loads(json.dumps(moments.to_json(), allow_nan=False)))
    for name, value in vars(moments).items():
        np.testing.assert_array_equal(getattr(back, name), value)
