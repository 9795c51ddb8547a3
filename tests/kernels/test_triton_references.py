"""The GPU step, driven by the PyTorch references of its kernels: this needs no Triton."""

import sys

import pytest
import torch
from kernel_doubles import B, make_batch, make_optimiser, make_state, relu_objective, topk_objective
from torch.utils._python_dispatch import TorchDispatchMode

from sae_pipeline.kernels import cpu, cuda, dispatch, reference
from sae_pipeline.kernels.cuda import plain

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave.Tensor")


class NoReads(TorchDispatchMode):
    """Fails at an operation whose result the host, or its shape, must wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        assert not name.startswith(READS), f"the host waits for {name}"
        if name.startswith("index."):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "indexed by a mask"
        return function(*args, **(kwargs or {}))


def _step(state, x, objective, optimiser=None, *, lr=3e-3, l1=0.02):
    with torch.no_grad():
        return cuda.step(state, x, objective, optimiser or make_optimiser(), lr=lr, l1=l1, kernels=plain.KERNELS)


CASES = {
    "selection among the dead": (topk_objective(), {"silent": 20}, {}),
    "more aux slots than dead": (topk_objective(auxk_k=30), {"silent": 20}, {}),
    "none dead": (topk_objective(dead_after_tokens=10**9), {}, {}),
    "clipped, no average": (topk_objective(), {"silent": 20, "average": False}, {"grad_clip": 0.05, "ema": None}),
    "k = 1, no AuxK": (topk_objective(k=1, auxk_k=0), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_step_equals_reference_over_steps(case, dtype, tolerance):
    objective, start, constants = CASES[case]
    plain_state, state = make_state(dtype, **start), make_state(dtype, **start)
    auxk = []
    for t in range(8):
        x, optimiser = make_batch(t, dtype), make_optimiser(**constants)
        with torch.no_grad():
            expected = reference.step(plain_state, x, objective, optimiser, lr=3e-3, l1=0.02)
        found = _step(state, x, objective, optimiser)
        auxk.append(float(found.auxk))
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    assert any(auxk) == (case not in ("none dead", "k = 1, no AuxK"))
    assert (plain_state.updates, state.updates) == (8, 8)
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, plain_state.tensors()[name], rtol=tolerance, atol=tolerance, msg=name)


def test_the_host_waits_for_nothing():
    state, x, objective = make_state(silent=20), make_batch(0), topk_objective()
    with NoReads():
        _step(state, x, objective, make_optimiser(grad_clip=0.05))
        _step(state, x, objective, lr=torch.tensor(1e-3), l1=torch.tensor(0.0))
    with pytest.raises(AssertionError, match="waits for"), NoReads(), torch.no_grad():
        cpu.step(state, x, objective, make_optimiser(), lr=1e-3, l1=0.0)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_not_counted(bad):
    state = make_state(silent=20)
    _step(state, make_batch(0), topk_objective())
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    x = make_batch(1)
    x[3, 2] = bad
    assert not _step(state, x, topk_objective()).reconstruction.isfinite()
    assert state.updates == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert _step(state, make_batch(1), topk_objective()).reconstruction.isfinite() and state.updates == 2


def test_a_first_batch_that_is_not_finite_changes_nothing():
    state = make_state()
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    _step(state, torch.full_like(make_batch(0), torch.inf), topk_objective())
    assert state.updates == 0 and all(torch.equal(t, before[name]) for name, t in state.tensors().items())


def test_auxk_of_a_constant_error_is_dropped():
    state = make_state(average=False)
    state.params.b_enc.fill_(-100.0)
    losses = _step(state, torch.ones(B, 12, dtype=torch.float64), topk_objective())
    assert float(losses.auxk) == 0.0 and float(losses.l0) == 0.0
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors().values())


def test_dispatch_takes_the_gpu_step_for_topk_where_triton_is(monkeypatch):
    made = []
    monkeypatch.setattr(cuda, "triton_kernels", lambda: made.append(1) or plain.KERNELS)
    for present in (True, False):
        monkeypatch.setattr(cuda, "has_triton", lambda present=present: present)
        step = dispatch.step_on(torch.device("cuda"), topk_objective())
        assert (getattr(step, "func", step) is cuda.step) == present
        for other in (relu_objective(), topk_objective(auxk_k=449)):
            assert dispatch.step_on(torch.device("cuda"), other) is reference.step
        assert dispatch.step_on(torch.device("cpu"), topk_objective()) is cpu.step
        assert dispatch.step_on(torch.device("meta"), topk_objective()) is reference.step
    assert made == [1]


def test_only_a_gpu_step_imports_triton():
    import subprocess

    code = "import sys, sae_pipeline.kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
