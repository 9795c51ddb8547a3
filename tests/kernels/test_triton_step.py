"""The whole GPU step through its Triton kernels, interpreted, against dense autograd."""

from functools import partial

import pytest
import torch
from kernel_doubles import make_batch, make_optimiser, make_state, topk_objective
from triton_doubles import INTERPRETED, close, selection, updating

from sae_pipeline.kernels import cuda, reference

CASES = {  # awkward on purpose: no size is a power of two or a multiple of a tile
    "selection among the dead": ((19, 33, 13), topk_objective(dead_after_tokens=19), {"silent": 9}, {}),
    "slots for all the dead": ((17, 20, 7), topk_objective(auxk_k=9, dead_after_tokens=17), {"silent": 6}, {}),
    "clipped, k = 1": ((18, 21, 6), topk_objective(k=1, dead_after_tokens=18), {"silent": 9}, {"grad_clip": 0.05}),
    "no average, no AuxK": ((17, 21, 33), topk_objective(auxk_k=0), {"average": False}, {"ema": None}),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(selection, "LATENTS_PER_TILE", 16)
    monkeypatch.setattr(selection, "DIMS_PER_TILE", 16)
    monkeypatch.setattr(updating, "WINDOW", 8)


def _run(case, dtype, kernels=INTERPRETED, steps=6):
    """Losses of every step, and the state after the last; the reference's where no kernels are given."""
    (b, n, d), objective, start, constants = CASES[case]
    state, optimiser = make_state(dtype, n=n, d=d, **start), make_optimiser(**constants)
    step = reference.step if kernels is None else lambda *a, **k: cuda.step(*a, kernels=kernels, **k)
    with torch.no_grad():
        losses = [
            step(state, make_batch(t, dtype, b=b, d=d), objective, optimiser, lr=3e-3, l1=0.02) for t in range(steps)
        ]
    return losses, state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_equals_reference_over_steps(case, dtype):
    (found, state), (expected, plain_state) = _run(case, dtype), _run(case, dtype, None)
    for a, b in zip(found, expected, strict=True):
        for term, wanted in zip(a, b, strict=True):
            close(term.to(wanted.dtype), wanted)
    assert any(float(losses.auxk) for losses in found) == (CASES[case][1].auxk_k > 0)
    assert state.updates == plain_state.updates == 6
    for name, tensor in state.tensors().items():
        close(tensor.double(), plain_state.tensors()[name].double(), 1e-5 if dtype == torch.float32 else 1e-12)


def test_two_runs_give_the_same_bits():
    case = "selection among the dead"
    (_, one), (_, two) = (_run(case, torch.float32, steps=2) for _ in range(2))
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())


def test_a_screened_step_equals_an_exact_one():
    def screened(*arguments):
        return selection.select_screened(*arguments, dtype=torch.float16)

    case = "selection among the dead"
    (_, state), (_, exact) = (
        _run(case, torch.float32, kernels, steps=3) for kernels in (INTERPRETED._replace(select=screened), None)
    )
    for name, tensor in state.tensors().items():
        close(tensor.double(), exact.tensors()[name].double(), 1e-5)


def test_a_batch_that_is_not_finite_changes_nothing():
    (b, n, d), objective, start, _ = CASES["selection among the dead"]
    state = make_state(torch.float32, n=n, d=d, **start)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    x = make_batch(0, torch.float32, b=b, d=d)
    x[5, 1] = torch.nan
    with torch.no_grad():
        losses = cuda.step(state, x, objective, make_optimiser(), lr=1e-2, l1=0.0, kernels=INTERPRETED)
    assert not losses.reconstruction.isfinite() and state.updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("select", [selection.select, partial(selection.select_screened, dtype=torch.float16)])
def test_auxk_leaves_every_bit_as_it_is_where_none_is_dead(select):
    states = []
    for auxk_k in (0, 5):
        state = make_state(torch.float32, n=21, d=7)
        for t in range(2):
            objective = topk_objective(auxk_k=auxk_k, dead_after_tokens=10**9)
            kernels = INTERPRETED._replace(select=select)
            with torch.no_grad():
                losses = cuda.step(
                    state, make_batch(t, torch.float32, b=17, d=7), objective, make_optimiser(),
                    lr=3e-3, l1=0.0, kernels=kernels,
                )  # fmt: skip
            assert float(losses.auxk) == 0.0
        states.append(state.tensors())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
