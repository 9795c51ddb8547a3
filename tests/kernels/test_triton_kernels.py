"""Each Triton kernel, interpreted, against its PyTorch reference."""

import pytest
import torch
from kernel_doubles import make_batch, make_optimiser, make_state
from triton_doubles import INTERPRETED, close, selection, updating

from sae_pipeline.kernels.cuda import plain
from sae_pipeline.kernels.cuda.interface import Slot
from sae_pipeline.kernels.cuda.step import Part, grouped, listed

DTYPES = [torch.float32, torch.float64]


def _lists(latents, values):
    """Latents and values of each row in one order, empty slots last."""
    order = latents.long().argsort(dim=1, stable=True)
    return latents.gather(1, order), values.gather(1, order)


def _same_selection(found, expected):
    for a, b in zip(_lists(*found), _lists(*expected), strict=True):
        close(a.to(b.dtype).double(), b.double(), 1e-5 if b.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "n", "d", "k"), [(5, 40, 12, 1), (37, 140, 70, 7), (17, 65, 65, 65), (130, 128, 3, 5)])
def test_selection_equals_a_stable_sort_at_awkward_shapes(dtype, b, n, d, k):
    p = make_state(dtype, n=n, d=d).params
    x = make_batch(0, dtype, b=b, d=d)
    _same_selection(selection.select(x, p.W_enc, p.b_enc, k, None), plain.select(x, p.W_enc, p.b_enc, k, None))


def _scores_as_given(pre_bn):
    """Rows and encoder whose pre-activations are exactly `pre_bn`."""
    b, n = pre_bn.shape
    return torch.eye(b, dtype=pre_bn.dtype), pre_bn.t().contiguous(), torch.zeros(n, dtype=pre_bn.dtype)


def test_selection_of_adversarial_rows_takes_the_lower_of_equal_latents_and_what_torch_topk_takes():
    n, k = 140, 9
    g = torch.Generator().manual_seed(3)
    distinct = torch.rand(n, generator=g).sort().values + 0.1
    rows = torch.stack([
        torch.ones(n), -torch.ones(n), torch.zeros(n), -torch.zeros(n),
        torch.randint(0, 3, (n,), generator=g).float(),
        torch.where(torch.arange(n) >= n - 4, 2.0, -1.0),  # fewer positive than k, all in the last tile
        distinct, distinct.flip(0),  # ascending: every latent enters the list; descending: only the first do
        torch.where(torch.arange(n) % 128 == 127, distinct, -distinct),
        torch.where(torch.arange(n) % 2 == 0, 1.0, 1.0 + 2**-23),  # neighbours in float32
        torch.full((n,), 1e-45), torch.full((n,), 3e38),
    ])  # fmt: skip
    latents, values = selection.select(*_scores_as_given(rows), k, None)
    _same_selection((latents, values), plain.select(*_scores_as_given(rows), k, None))
    assert torch.equal(values.sort(dim=1, descending=True).values, rows.topk(k).values.relu())
    assert latents[0].sort().values.tolist() == list(range(k))
    assert (latents[1] == n).all() and (values[1] == 0).all()
    assert all(len(set(row[row < n].tolist())) == int((row < n).sum()) for row in latents)


def test_a_row_that_is_not_finite_gives_values_that_are_not():
    p = make_state(torch.float32).params
    x = make_batch(0, torch.float32, b=4)
    x[2, 3] = torch.nan
    for select in (selection.select, selection.select_screened, plain.select):
        _, values = select(x, p.W_enc, p.b_enc, 3, None)
        assert values.isnan().all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("n_dead", [0, 1, 5, 200])
def test_selection_among_the_dead_sees_no_other_latent(n_dead):
    n, k = 300, 6
    p = make_state(torch.float32, n=n).params
    x = make_batch(0, torch.float32, b=20)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:n_dead]] = True
    dead = listed(mask)
    assert dead.latents[:n_dead].tolist() == mask.nonzero()[:, 0].tolist() and int(dead.length) == n_dead
    found = selection.select(x, p.W_enc, p.b_enc, k, dead)
    _same_selection(found, plain.select(x, p.W_enc, p.b_enc, k, dead))
    only = plain.select(x, torch.where(mask[:, None], p.W_enc, 0), torch.where(mask, p.b_enc, 0), k, None)
    _same_selection(found, only)


def test_sixteen_bit_screening_with_exact_scoring_selects_what_exact_scores_do():
    p = make_state(torch.float32, n=140, d=70).params
    x = make_batch(0, torch.float32, b=17, d=70)
    exact = plain.select(x, p.W_enc, p.b_enc, 7, None)
    # The interpreter multiplies bfloat16 as if it were integers; float16 takes the same path through the kernels.
    found = selection.select_screened(x, p.W_enc, p.b_enc, 7, None, torch.float16)
    _same_selection(found, exact)
    rough = selection.select(x.half(), p.W_enc.half(), p.b_enc, 7, None)[1]
    assert rough.dtype == x.dtype and 0 < float((rough.sort().values - exact[1].sort().values).abs().max()) < 0.01


def test_screening_keeps_a_positive_score_that_sixteen_bits_round_to_zero():
    W = torch.tensor([[-1.0, -1.0]] * 30 + [[1 + 2**-12, -1.0]] + [[-1.0, -2.0]] * 30)
    assert float((torch.ones(1, 2).half() @ W.half().t())[0, 30]) == 0.0
    latents, values = selection.select_screened(torch.ones(1, 2), W, torch.zeros(61), 3, None, torch.float16)
    assert _lists(latents, values)[0].tolist() == [[30, 61, 61]] and float(values.max()) == 2**-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "n", "d", "k"), [(5, 40, 12, 1), (9, 50, 700, 37)])
def test_decoding_equals_the_reference(dtype, b, n, d, k):
    p = make_state(dtype, n=n, d=d).params
    x = make_batch(0, dtype, b=b, d=d)
    latents, values = plain.select(x, p.W_enc, p.b_enc, k, None)
    latents[0], values[0] = n, 0  # a token on which nothing fires
    found, expected = (kernel(latents, values, p.W_dec, x, None) for kernel in (INTERPRETED.decode, plain.decode))
    for a, b_ in zip(found, expected, strict=True):
        close(a, b_)


def _skewed_pairs(dtype, n, d, b=30, k=4):
    """Pairs of two terms; latent 3 is in every token, latent 5 in none; some slots are empty."""
    g = torch.Generator().manual_seed(7)

    def part(i):
        latents = (torch.rand(b, k, generator=g) ** 6 * (n + 1)).int()
        latents[latents == 5] = 6
        latents[:, 0], latents[::7, 1] = 3, n
        z, g_pre = (torch.randn(b, k, generator=g, dtype=dtype) for _ in range(2))
        full = latents < n
        return Part(latents, z * full, g_pre * full, torch.randn(b, d, generator=g, dtype=dtype))

    parts = [part(0), part(1)]
    return parts, *grouped(parts, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [8, 256])
def test_grouped_gradients_of_rare_and_frequent_latents_equal_the_reference(dtype, window, monkeypatch):
    monkeypatch.setattr(updating, "WINDOW", window)
    n, d = 20, 12
    parts, pairs, z, g_pre = _skewed_pairs(dtype, n, d)
    state = make_state(dtype, n=n, d=d)
    source = torch.cat([part.gx_bd for part in parts])
    assert window == 256 or (pairs.offsets.diff() > 3 * window).any()
    assert (pairs.offsets.diff() == 0).any() and int(pairs.offsets[-1]) < len(z)
    close(INTERPRETED.segment_sums(g_pre, pairs.offsets), plain.segment_sums(g_pre, pairs.offsets))
    for weights, rows, unit in ((z, source, state.params.W_dec), (g_pre, source[:30].contiguous(), None)):
        dense = torch.zeros(n + 1, d, dtype=dtype)
        for pair, latent in enumerate(pairs.latents.tolist()):
            dense[latent] += weights[pair] * rows[int(pairs.tokens[pair]) % len(rows)]
        close(plain.row_gradients(pairs, weights, rows, None), dense[:n])
        close(INTERPRETED.squares(pairs, weights, rows, unit), plain.squares(pairs, weights, rows, unit))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("ema", [0.9, None])
def test_the_update_equals_the_reference_and_a_step_not_kept_changes_nothing(unit, ema):
    n, d = 20, 12
    _, pairs, z, _ = _skewed_pairs(torch.float64, n, d)
    source, constants = make_batch(1, b=60, d=d), make_optimiser(ema=ema)
    results = []

    def tensors(*slots):
        return [tensor for slot in slots for tensor in slot if tensor is not None]

    for kernels in (INTERPRETED, plain.KERNELS):
        state = make_state(n=n, d=d, average=ema is not None)
        average = None if state.average is None else state.average.W_dec
        slot = Slot(state.params.W_dec, state.first.W_dec, state.second.W_dec, average)
        vector = Slot(*(None if t is None else t[:, 0].contiguous() for t in slot))
        start = [t.clone() for t in tensors(slot, vector)]
        for keep in (1.0, 0.0, 1.0):
            before = [t.clone() for t in tensors(slot, vector)]
            scalars = torch.tensor([keep, 0.03, 0.4, 0.7], dtype=torch.float64)
            kernels.update_rows(slot, pairs, z, source, scalars, constants, unit)
            kernels.update_vector(vector, source[:n, 0].contiguous(), scalars, constants)
            if not keep:
                assert all(map(torch.equal, before, tensors(slot, vector)))
        results.append(tensors(slot, vector))
        assert not any(map(torch.equal, start, results[-1]))
    for a, b in zip(*results, strict=True):
        close(a, b)


def test_kernels_give_the_same_bits_twice_and_a_row_does_not_depend_on_its_batch():
    p = make_state(torch.float32, n=140, d=70).params
    x = make_batch(0, torch.float32, b=40, d=70)
    latents, values = selection.select(x, p.W_enc, p.b_enc, 7, None)
    again = selection.select(x, p.W_enc, p.b_enc, 7, None)
    part = selection.select(x[21:24].contiguous(), p.W_enc, p.b_enc, 7, None)
    assert torch.equal(latents, again[0]) and torch.equal(values, again[1])
    assert torch.equal(latents[21:24], part[0])
    _, pairs, z, _ = _skewed_pairs(torch.float32, 40, 12)
    source = make_batch(1, torch.float32, b=60)
    assert torch.equal(*(updating.squares(pairs, z, source, None) for _ in range(2)))
