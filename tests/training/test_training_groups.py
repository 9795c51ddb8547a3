"""A memory budget decides how many members train at once, and nothing else."""

import pytest
from training_doubles import StopAt, make_spec

from sae_pipeline.store import PipelineError
from sae_pipeline.training import run as run_module
from sae_pipeline.training import train
from sae_pipeline.training.cost import groups_within, state_bytes

D = 32


def test_states_are_counted_to_the_byte(member, rows, monkeypatch):
    counted = []
    monkeypatch.setattr(run_module.Run, "finish", lambda self, held_out: (counted.append(self), stop(self)))

    def stop(run):
        run.status = "finished"

    train({"a": member("a", tokens=128 * 7), "b": member("b", tokens=128 * 7, ema=None)}, rows)
    for run in counted:
        held = sum(tensor.numel() * tensor.element_size() for tensor in run.state.tensors().values())
        assert held == state_bytes(run.spec, D), run.spec.ema


def test_groups_fit_and_keep_equal_batches_together():
    specs = {name: make_spec(n=n, batch=b) for name, n, b in (("a", 64, 128), ("b", 64, 64), ("c", 64, 128))}
    one = state_bytes(specs["a"], D)
    assert list(groups_within(specs, D, None)) == [["a", "b", "c"]]
    assert list(groups_within(specs, D, 3 * one)) == [["b", "a", "c"]]
    assert list(groups_within(specs, D, 2 * one)) == [["b", "a"], ["c"]]
    assert list(groups_within(specs, D, 1)) == [["b"], ["a"], ["c"]]
    assert list(groups_within({}, D, 1)) == []


COMPANY = {"a": {}, "b": {"seed": 1}, "c": {"n": 96}, "d": {"batch": 64, "tokens": 64 * 30}}


def test_groups_one_after_another_give_the_same_bits(member, rows, monkeypatch):
    together = {key: member(f"together-{key}", **settings) for key, settings in COMPANY.items()}
    train(together, rows)
    alive, most, advance = set(), [], run_module.Run.advance

    def watch(self, *given):
        alive.add(self.draft.path.name)
        advance(self, *given)

    monkeypatch.setattr(run_module.Run, "advance", watch)

    class Recorder:
        def update(self, done, total, unit, **info):
            most.append((info["members"], done, total))

    grouped = {key: member(f"grouped-{key}", **settings) for key, settings in COMPANY.items()}
    outcomes = train(grouped, rows, memory_bytes=2 * state_bytes(make_spec(), D), progress=Recorder())
    assert list(outcomes) == list(COMPANY) and {o.status for o in outcomes.values()} == {"finished"}
    assert max(members for members, _, _ in most) <= 2 and len(alive) == 4
    whole = 3 * 40 * 128 + 30 * 64
    assert {total for _, _, total in most} == {whole} and most[-1][1] == whole
    assert [done for _, done, _ in most] == sorted(done for _, done, _ in most)
    for key in COMPANY:
        one, other = (m[key].draft.file("autoencoder.safetensors").read_bytes() for m in (together, grouped))
        assert one == other


def test_a_stop_in_the_first_group_leaves_the_others_for_the_next_run(member, rows):
    m = {key: member(key, **settings) for key, settings in COMPANY.items()}
    outcomes = train(m, rows, memory_bytes=1, should_stop=StopAt(35))
    assert {key: (o.status, o.step) for key, o in outcomes.items()} == {
        "d": ("finished", 30), "a": ("stopped", 5), "b": ("stopped", 0), "c": ("stopped", 0),
    }  # fmt: skip
    assert {o.status for o in train(m, rows, memory_bytes=1).values()} == {"finished"}


def test_a_later_group_is_checked_before_the_first_begins(member, rows):
    fine, refused = member("fine"), member("refused", batch=256, k=65)
    with pytest.raises(PipelineError, match="between 1 and n = 64"):
        train({"fine": fine, "refused": refused}, rows, memory_bytes=1)
    assert not fine.draft.exists("checkpoint.safetensors") and not fine.draft.exists("config.json")
