"""The fast step against the reference, and what a step must leave true."""

import pytest
import torch
from kernel_doubles import D, N, make_batch, make_optimiser, make_state, relu_objective, topk_objective

from sae_pipeline.kernels import cpu, reference, screening, train_step
from sae_pipeline.kernels.pairs import group_by_latent

SPARSE = {"silent": 36, "shift": 4.0}  # latents of which fewer than a fifth fire: the ReLU step goes sparse
CASES = {
    "topk with selection among the dead": (topk_objective(), {"silent": 20}, {}),
    "topk with more aux slots than dead": (topk_objective(auxk_k=30), {"silent": 20}, {}),
    "topk, none dead": (topk_objective(dead_after_tokens=10**9), {}, {}),
    "topk clipped, no average": (topk_objective(), {"silent": 20, "average": False}, {"grad_clip": 0.05, "ema": None}),
    "topk clipped, with average": (topk_objective(), {"silent": 20}, {"grad_clip": 0.05}),
    "topk, k = n": (topk_objective(k=N), {}, {}),
    "relu, sparse": (relu_objective(), SPARSE, {}),
    "relu, dense": (relu_objective(), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fast_step_equals_reference_over_steps(case, dtype, tolerance, threads, monkeypatch):
    objective, start, optimiser = CASES[case]
    torch.set_num_threads(threads)
    monkeypatch.setattr(screening, "SCORE_BYTES", 20 * N * 8)  # several chunks of rows
    monkeypatch.setattr(cpu, "BLOCK_BYTES", 7 * D * 8)  # several blocks of latents, the last one short
    plain, fast = make_state(dtype, **start), make_state(dtype, **start)
    before = fast.params.W_enc.clone()
    for step in range(8):
        x = make_batch(step, dtype)
        arguments = {"lr": 3e-3, "l1": 0.02}
        with torch.no_grad():
            expected = reference.step(plain, x, objective, make_optimiser(**optimiser), **arguments)
            found = cpu.step(fast, x, objective, make_optimiser(**optimiser), **arguments)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    assert float((fast.params.W_enc - before).abs().max()) > 1e-3
    assert (plain.updates, fast.updates) == (8, 8)
    for name, tensor in fast.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[name], rtol=tolerance, atol=tolerance, msg=name)


def test_the_relu_cases_take_both_paths():
    for start, sparse in ((SPARSE, True), ({}, False)):
        params = make_state(**start).params
        support = relu_objective().activation.support(params, make_batch(0) - params.b_pre)
        assert (support is not None) == sparse


def test_step_equals_torch_adam_with_projection_and_unit_rows():
    """The reference's optimiser against torch.optim.Adam, gradients from autograd over a loss written here."""
    state, objective = make_state(), topk_objective(auxk_k=0)
    p = state.params.map(lambda t: t.clone().requires_grad_())
    adam = torch.optim.Adam(p.named().values(), lr=1e-2, betas=(0.9, 0.999), eps=6.25e-10)
    for step in range(6):
        x = make_batch(step)
        train_step(state, x, objective, make_optimiser(), lr=1e-2)
        pre = (x - p.b_pre) @ p.W_enc.T + p.b_enc
        values, indices = pre.topk(4)
        z = torch.zeros_like(pre).scatter(1, indices, values.relu())
        adam.zero_grad()
        (objective.loss_scale * (x - z @ p.W_dec - p.b_pre).square().sum(1).mean()).backward()
        with torch.no_grad():
            p.W_dec.grad -= (p.W_dec.grad * p.W_dec).sum(1, keepdim=True) * p.W_dec
            adam.step()
            p.W_dec /= p.W_dec.norm(dim=1, keepdim=True)
    for name, tensor in state.params.named().items():
        torch.testing.assert_close(tensor, p.named()[name].detach(), rtol=1e-10, atol=1e-12, msg=name)


def test_decoder_rows_stay_unit_and_their_gradient_tangent():
    state, objective = make_state(torch.float32, silent=20), topk_objective()
    for step in range(20):
        train_step(state, make_batch(step, torch.float32), objective, make_optimiser(), lr=1e-2)
        assert float((state.params.W_dec.double().norm(dim=1) - 1).abs().max()) < 1e-6
    blocks = []
    update = cpu.update_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cpu,
            "update_rows",
            lambda s, name, rows, g, *rest, **unit: (
                blocks.append((name, rows, g.clone())),
                update(s, name, rows, g, *rest, **unit),
            ),
        )
        unit = state.params.W_dec.clone()
        train_step(state, make_batch(99, torch.float32), objective, make_optimiser(), lr=1e-2)
    along = [(g * unit[rows]).sum(1).abs().max() for name, rows, g in blocks if name == "W_dec"]
    assert along and float(max(along)) < 1e-6


def test_average_of_constant_weights_is_those_weights_and_tracks_the_formula():
    state, optimiser = make_state(), make_optimiser(ema=0.9)
    start = state.params.map(torch.clone)
    for step in range(3):
        train_step(state, make_batch(step), topk_objective(), optimiser, lr=0.0)
    for name, tensor in state.averaged(0.9).named().items():
        torch.testing.assert_close(tensor, start.named()[name], rtol=1e-12, atol=1e-14)
    state, seen = make_state(), []
    for step in range(4):
        train_step(state, make_batch(step), topk_objective(), optimiser, lr=1e-2)
        seen.append(state.params.W_enc.clone())
    weights = torch.tensor([0.9**3, 0.9**2, 0.9, 1.0], dtype=torch.float64)
    expected = torch.einsum("t,tnd->nd", weights / weights.sum(), torch.stack(seen))
    torch.testing.assert_close(state.averaged(0.9).W_enc, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_threads_take_parts_of_a_step_to_the_same_bits_each_time(threads, dtype, monkeypatch):
    torch.set_num_threads(threads)
    ended, parts = [], set()
    prepare = cpu._backward
    monkeypatch.setattr(
        cpu,
        "_backward",
        lambda params, part, *rest: (parts.add((part.start, part.stop)), prepare(params, part, *rest))[1],
    )
    for _ in range(2):
        state = make_state(dtype, silent=20)
        for step in range(6):
            train_step(state, make_batch(step, dtype), topk_objective(), make_optimiser(grad_clip=0.05), lr=1e-2)
        ended.append(state.tensors())
    assert parts == ({(0, 20), (20, 40)} if threads == 2 else {(0, 13), (13, 26), (26, 40)})
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


def test_more_threads_than_rows_or_latents_are_no_harm():
    torch.set_num_threads(5)
    plain, fast = make_state(n=4), make_state(n=4)
    with torch.no_grad():
        for step, state in ((reference.step, plain), (cpu.step, fast)):
            step(state, make_batch(0, b=3), topk_objective(k=2), make_optimiser(), lr=1e-2, l1=0.0)
    for name, tensor in fast.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("step", [reference.step, cpu.step])
def test_a_batch_that_is_not_finite_changes_nothing(step, threads):
    torch.set_num_threads(threads)
    state = make_state(silent=20)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    x = make_batch(0)
    x[3, 2] = float("inf")
    with torch.no_grad():
        assert step(state, x, topk_objective(), make_optimiser(), lr=1e-2, l1=0.0) is None
    assert state.updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_grouping_pairs_by_latent_is_a_stable_sort_for_small_and_large_n():
    latents = torch.randint(0, 50_000, (3000,), generator=torch.Generator().manual_seed(0))
    for n in (50_000, 70_000):
        order, offsets = group_by_latent(latents, n, slice(0, n))
        assert torch.equal(order, torch.sort(latents, stable=True).indices)
        parts = [group_by_latent(latents, n, part) for part in (slice(0, 20_000), slice(20_000, n))]
        assert torch.equal(torch.cat([part[0] for part in parts]), order)
        assert torch.equal(torch.cat([part[1].diff() for part in parts]), offsets.diff())
        assert torch.equal(offsets.diff(), torch.bincount(latents, minlength=n)) and int(offsets[0]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_on_which_nothing_fires_still_makes_the_references_step(dtype):
    plain, fast = make_state(dtype, silent=N, shift=100.0), make_state(dtype, silent=N, shift=100.0)
    x = make_batch(0, dtype)
    with torch.no_grad():
        for step, state in ((reference.step, plain), (cpu.step, fast)):
            losses = step(state, x, topk_objective(dead_after_tokens=10**9), make_optimiser(), lr=1e-2, l1=0.0)
            assert float(losses.l0) == 0.0
    for name, tensor in fast.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[name], rtol=1e-5, atol=1e-5, msg=name)
