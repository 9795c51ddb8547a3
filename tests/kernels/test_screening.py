"""The k largest of a row, exactly, whatever the precision of the scores they are found with."""

import pytest
import torch
from kernel_doubles import make_batch, make_optimiser, make_state, topk_objective

from sae_pipeline.kernels import Parameters, compiled, precision, screening, train_step, ways

BF16, FP32 = torch.bfloat16, torch.float32


def screened_in(monkeypatch, dtype):
    monkeypatch.setattr(screening, "screening_dtype", lambda of: dtype if of == FP32 else of)


def uneven(b=1500, n=2048, d=64, seed=3):
    """Rows and weights of unequal norms, with biases and with near-copies among the latents: close races."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n, d, generator=g) * (0.3 + torch.rand(n, 1, generator=g))
    W[n // 2 :] = W[: n // 2] * (1 + 1e-3 * torch.randn(n // 2, 1, generator=g))
    x = torch.randn(b, d, generator=g) * torch.logspace(-2, 2, b)[:, None]
    b_enc = 0.2 * torch.randn(n, generator=g)
    return Parameters(W, b_enc, W.clone(), torch.zeros(d)), x


def test_the_support_is_that_of_exact_scores_where_the_screens_own_is_not(monkeypatch):
    params, x = uneven()
    k = 16
    screened_in(monkeypatch, BF16)
    support = screening.topk_support(params, x, k)
    exact = x.double() @ params.W_enc.double().t() + params.b_enc.double()
    best = exact.topk(k, dim=1)
    expected = torch.zeros(exact.shape, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    found = torch.zeros_like(expected)
    found[support.tokens, support.latents] = True
    raw = (x.bfloat16() @ params.W_enc.bfloat16().t()).float() + params.b_enc
    alone = torch.zeros_like(expected).scatter_(1, raw.topk(k, dim=1).indices, True) & expected
    agreement = float((found & expected).sum() / expected.sum())
    assert float(alone.sum() / expected.sum()) < 0.999, "the screen alone should get close races wrong"
    # Two sums in float32 may differ in their last bits, so a race closer than that has no winner.
    differing = (found != expected).any(1)
    gap_b = exact.topk(k + 1, dim=1).values.diff(dim=1)[:, -1].abs() / exact.abs().amax(1)
    assert agreement >= 0.99999 and bool((gap_b[differing] < 1e-6).all())
    torch.testing.assert_close(support.values.double(), exact[support.tokens, support.latents], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_no_score_is_further_from_the_exact_one_than_the_bound(dtype):
    params, x = uneven()
    x[5] = 0.0
    screen = screening.make_screen(params, dtype)
    rounded = screening.make_rows(x, dtype)
    bound_b = screening.error_bound(screen, rounded).double()
    scores = screening.scores(screen, rounded.rows).double()
    exact = x.double() @ params.W_enc.double().t() + params.b_enc.double()
    stored = torch.finfo(dtype).eps / 2 * scores.abs()  # a score is rounded once more when it is stored
    excess = ((scores - exact).abs() - stored).amax(1) / bound_b
    assert float(excess.max()) <= 1.0
    assert float(excess.max()) > 0.01, "a bound as loose as this would let everything through"
    counts_b, _ = screening.screened(params, x, 16, dtype)
    assert 16 <= float(counts_b.double().mean()) < (80 if dtype == BF16 else 17)


def test_training_gives_the_same_bits_whatever_the_screen_and_its_chunks(monkeypatch):
    ways = [
        (BF16, True, 1 << 20),
        (BF16, False, 1 << 20),
        (FP32, True, 1 << 20),
        (FP32, False, 1000),
        (BF16, True, 999),
    ]
    ended = []
    library = compiled.library
    for dtype, may_be_compiled, score_bytes in ways:
        screened_in(monkeypatch, dtype)
        monkeypatch.setattr(compiled, "library", library if may_be_compiled else lambda: None)
        monkeypatch.setattr(screening, "SCORE_BYTES", score_bytes)
        state = make_state(FP32, n=256, d=24, silent=100)
        for step in range(6):
            objective, optimiser = topk_objective(k=8, auxk_k=6), make_optimiser(grad_clip=0.1)
            assert train_step(state, make_batch(step, FP32, d=24), objective, optimiser, lr=1e-2) is not None
        ended.append(state.tensors())
    for other in ended[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in ended[0].items())


def test_a_bound_too_loose_to_be_of_use_gives_way_to_float32(monkeypatch):
    params, x = uneven(b=200)
    params.W_enc[9] *= 300.0
    supports = []
    for dtype in (BF16, FP32):
        screened_in(monkeypatch, dtype)
        supports.append(screening.topk_support(params, x, 16))
        assert (screening.screened(params, x, 16, dtype) is None) == (dtype == BF16)
    assert all(torch.equal(a, b) for a, b in zip(*supports, strict=True))


def test_a_latent_that_can_never_fire_does_not_loosen_the_bound():
    params, x = uneven(b=200)
    before = screening.error_bound(screening.make_screen(params, BF16), screening.make_rows(x, BF16))
    params.b_enc[7] = -1e9 / 3
    after = screening.error_bound(screening.make_screen(params, BF16), screening.make_rows(x, BF16))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_equal_latents_are_taken_in_order_and_an_empty_row_takes_none(dtype, monkeypatch):
    screened_in(monkeypatch, dtype)
    W = torch.randn(1, 24, generator=torch.Generator().manual_seed(0)).repeat(96, 1)
    x = torch.cat([W[:2], -W[:1], torch.zeros(1, 24)])
    support = screening.topk_support(Parameters(W, torch.zeros(96), W, torch.zeros(24)), x, 5)
    assert support.indptr.tolist() == [0, 5, 10, 10, 10]
    assert support.latents.tolist() == 2 * [0, 1, 2, 3, 4] and support.tokens.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("bad", ["rows", "W_enc", "b_enc"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_support(bad, value):
    params, x = uneven(b=20, n=64)
    (x if bad == "rows" else getattr(params, bad)).view(-1)[70 % 64] = value
    assert screening.topk_support(params, x, 4) is None


def test_the_screen_is_bfloat16_only_for_float32_and_only_where_the_cpu_has_it(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16_products", lambda able=able: able)
        assert precision.screening_dtype(torch.float64) == torch.float64
        assert precision.screening_dtype(FP32) == (BF16 if able else FP32)


@pytest.mark.parametrize("able", [True, False])
def test_what_was_chosen_is_named(able, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda: able)
    monkeypatch.setattr(compiled, "library", lambda: object() if able else None)
    expected = ("bfloat16", "compiled") if able else ("float32", "PyTorch")
    assert ways() == dict(zip(("screen", "selection"), expected, strict=True))


def test_a_cpu_without_the_instructions_is_told_apart(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert precision.has_bfloat16_products.__wrapped__() is False
