"""Dead latents are pointed at what is badly reconstructed."""

import pytest
import torch
from training_doubles import Rows, planted

from sae_pipeline.kernels import Objective, Optimiser, Parameters, TopK, TrainState
from sae_pipeline.training import train
from sae_pipeline.training.resample import resample

N, D, DEAD = 12, 8, [2, 5, 7]
OPTIMISER = Optimiser((0.9, 0.999), 1e-8, 0.9, None)
OBJECTIVE = Objective(TopK(2), 1.0, 0, 0.0, 100)


@pytest.fixture
def state():
    g = torch.Generator().manual_seed(3)
    W_dec = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    extra = {"log_threshold": torch.randn(N, generator=g), "cut": torch.ones(1)}
    params = Parameters(torch.randn(N, D, generator=g), torch.randn(N, generator=g), W_dec, torch.randn(D), extra)
    state = TrainState.start(params, average=True)
    for group in (state.first, state.second, state.average):
        for tensor in group.named().values():
            tensor += 1.0
    state.updates = 7
    state.fired.tokens_since_fired[DEAD] = 100
    return state


def test_the_dead_start_anew_at_rows_and_nothing_else_changes(state):
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    first = {"log_threshold": torch.full((N,), -3.0), "cut": torch.zeros(1)}
    assert resample(state, x, OBJECTIVE, OPTIMISER, first, seed=0) == 3
    alive = [i for i in range(N) if i not in DEAD]
    for name, tensor in state.tensors().items():
        rows = alive if len(tensor) == N else slice(None)
        assert torch.equal(tensor[rows], before[name][rows]), name
    directions = torch.nn.functional.normalize(x - state.params.b_pre, dim=1)
    assert float((state.params.W_dec[DEAD] @ directions.T).amax(1).min()) == pytest.approx(1, abs=1e-6)
    expected = 0.2 * state.params.W_enc[alive].norm(dim=1).mean()
    torch.testing.assert_close(state.params.W_enc[DEAD], expected * state.params.W_dec[DEAD])
    assert not state.params.b_enc[DEAD].any() and (state.params.extra["log_threshold"][DEAD] == -3).all()
    assert not state.first.W_enc[DEAD].any() and not state.second.W_dec[DEAD].any()
    assert not state.fired.tokens_since_fired[DEAD].any()
    torch.testing.assert_close(state.averaged(0.9).W_dec[DEAD], state.params.W_dec[DEAD])


def test_rows_are_drawn_by_squared_loss(state):
    """One row of twice the error (four times the loss) is drawn sixteen times as often as each of the others."""
    state.fired.tokens_since_fired[:] = 0
    state.fired.tokens_since_fired[DEAD[0]] = 100
    state.params.W_enc.zero_()
    state.params.b_enc.fill_(-1.0)  # nothing fires: the error is x − b_pre
    x = torch.eye(D) + state.params.b_pre
    x[0] = 2 * torch.eye(D)[0] + state.params.b_pre
    hits = 0
    for seed in range(300):
        state.fired.tokens_since_fired[DEAD[0]] = 100
        resample(state, x, OBJECTIVE, OPTIMISER, {}, seed)
        hits += int(state.params.W_dec[DEAD[0], 0] > 0.9)
        state.params.W_enc.zero_()
        state.params.b_enc.fill_(-1.0)
    assert hits / 300 == pytest.approx(16 / 23, abs=0.08)


@pytest.mark.parametrize("dead", [[], list(range(N))])
def test_without_dead_or_without_living_nothing_happens(state, dead):
    state.fired.tokens_since_fired[:] = 0
    state.fired.tokens_since_fired[dead] = 100
    before = state.params.map(torch.clone)
    assert resample(state, torch.randn(5, D), OBJECTIVE, OPTIMISER, {}, seed=0) == 0
    assert all(torch.equal(tensor, before.named()[name]) for name, tensor in state.params.named().items())


def test_it_brings_latents_back_in_a_run_and_resumes_with_the_same_bits(member):
    rows = Rows(planted(features=600)[0])
    settings = {"recipe": "relu", "k": None, "l1": 0.3, "auxk_k": None, "n": 256, "lr": 1e-2, "tokens": 128 * 200}
    settings["dead_after_tokens"] = 128 * 20
    plain, given = (member(name, **settings, resample=r) for name, r in (("plain", None), ("given", (0.3, 0.6))))
    outcomes = train({"plain": plain, "given": given}, rows)
    figures = {key: outcome.figures for key, outcome in outcomes.items()}
    assert figures["given"]["resampled"] > 0 == figures["plain"]["resampled"]
    assert figures["given"]["train"]["dead"] < figures["plain"]["train"]["dead"]

    class StopAt:
        left = 90

        def __call__(self):
            self.left -= 1
            return self.left < 0

    pieces = member("pieces", **settings, resample=(0.3, 0.6))
    assert train({"a": pieces}, rows, should_stop=StopAt())["a"].step == 90
    pieces.draft.close()
    again = member("pieces", **settings, resample=(0.3, 0.6))
    train({"a": again}, rows)
    name = "autoencoder.safetensors"
    assert (again.draft.path / name).read_bytes() == (given.draft.path / name).read_bytes()
