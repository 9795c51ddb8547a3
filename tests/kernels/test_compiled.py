"""The compiled part beside what it stands for."""

import pytest
import torch

from sae_pipeline.kernels import compiled, screening
from sae_pipeline.kernels.pairs import grouped

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C compiler was at hand at installation")


@pytest.mark.parametrize("d", [1, 31, 32, 33, 256])
def test_rows_are_rounded_as_pytorch_rounds_them(d, monkeypatch):
    g = torch.Generator().manual_seed(d)
    bits = torch.randint(0x3000_0000, 0x4F00_0000, (50, d), generator=g, dtype=torch.int32)  # from 1e-10 to 1e9
    rows = bits.view(torch.float32) * torch.randint(0, 2, (50, d), generator=g).mul(2).sub(1)
    rows[0], rows[1, 0], rows[2, 0] = 0.0, -0.0, 1e38
    rows.view(torch.int32)[3:20] &= ~0x7FFF  # halfway between two of lower precision, or one of them
    found = torch.full((50, d + 2), 7.0, dtype=torch.bfloat16)
    norms, losses = screening.round_rows(rows, found[:, :d])
    assert torch.equal(found[:, :d].view(torch.int16), rows.bfloat16().view(torch.int16))
    assert bool((found[:, d:] == 7.0).all())
    exact = rows.double().norm(dim=1)
    torch.testing.assert_close(norms.double(), torch.where(exact > 1e19, torch.inf, exact), rtol=1e-5, atol=0)
    monkeypatch.setattr(compiled, "library", lambda: None)
    torch.testing.assert_close(losses[3:], screening.round_rows(rows, found[:, :d])[1][3:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_have_no_finite_norm(value):
    rows = torch.ones(3, 40)
    rows[1, 35] = value
    norms, _ = screening.round_rows(rows, torch.empty(3, 40, dtype=torch.bfloat16))
    assert norms.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("part", [slice(0, 50), slice(0, 20), slice(20, 50), slice(49, 50)])
@pytest.mark.parametrize("pairs", [0, 1, 3000])
def test_pairs_are_grouped_to_the_bits_of_pytorch(part, pairs, monkeypatch):
    g = torch.Generator().manual_seed(0)
    latents = torch.randint(0, 50, (pairs,), generator=g).pow(2).div(49, rounding_mode="floor")  # some have none
    flat = torch.arange(pairs), latents, torch.rand(pairs, generator=g), torch.randn(pairs, generator=g)
    found = grouped(*flat, 50, part)
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(found, grouped(*flat, 50, part), strict=True))
