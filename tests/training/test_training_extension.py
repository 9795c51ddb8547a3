"""A longer budget goes on from the state that a shorter run kept before its decay, and ends as if made at once."""

import pytest
import torch
from training_doubles import Rows, make_spec, planted

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.store import Draft
from sae_pipeline.study import identity_of, lineage_record
from sae_pipeline.training import Member, train
from sae_pipeline.training import run as run_module
from sae_pipeline.training.extension import last_constant_step

KEPT = {"keep_before_decay": True, "decay_last": 0.25}


@pytest.fixture
def open_member(tmp_path):
    """Makes a member whose draft lies where the pipeline would put it, with the record that it would have."""
    drafts = []

    def make(place, *, version=1, **settings):
        spec = make_spec(**(KEPT | settings))
        record = lineage_record("autoencoder", version, spec.determining(), {"dataset": "d" * 64})
        identity = identity_of(record)
        path = tmp_path / place / f"{spec.key}-{identity[:12]}"
        draft = Draft.open(path, stage="autoencoders", key=spec.key, identity=identity, lineage=record)
        drafts.append(draft)
        return Member(spec, draft)

    yield make
    for draft in drafts:
        draft.close()


@pytest.fixture
def steps(monkeypatch):
    """Every step that is made."""
    made, advance = [], run_module.Run.advance
    monkeypatch.setattr(run_module.Run, "advance", lambda self, *given: (made.append(self.step), advance(self, *given)))
    return made


def same_weights(one, other):
    pairs = zip(*(Autoencoder.load(m.draft.path).parameters.named().values() for m in (one, other)), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("decay_last", [0.25, 0.0])
def test_a_longer_budget_is_reached_without_a_restart(open_member, rows, steps, decay_last):
    settings = {"decay_last": decay_last}
    short = open_member("shared", **settings)
    train({"a": short}, rows)
    identity = short.draft.publish({}).identity
    steps.clear()
    extended = open_member("shared", tokens=128 * 90, **settings)
    outcome = train({"a": extended}, rows, held_out_xd=rows.rows_md[:500])["a"]
    assert outcome.status == "finished" and steps == list(range(last_constant_step(40, decay_last), 90))
    assert extended.draft.read_json("extends.json") == {"identity": identity, "tokens": short.spec.tokens}
    whole = open_member("elsewhere", tokens=128 * 90, **settings)
    made_at_once = train({"a": whole}, rows, held_out_xd=rows.rows_md[:500])["a"]
    assert same_weights(extended, whole) and not same_weights(extended, short)
    timeless = [outcome.figures | {"train_s": 0} for outcome in (outcome, made_at_once)]
    assert timeless[0] == timeless[1] and not whole.draft.exists("extends.json")


def test_the_longest_run_is_gone_on_from_and_can_be_gone_on_from_again(open_member, rows, steps):
    for tokens in (128 * 20, 128 * 40):
        m = open_member("shared", tokens=tokens)
        train({"a": m}, rows)
        m.draft.publish({})
    steps.clear()
    train({"a": open_member("shared", tokens=128 * 60)}, rows)
    assert steps == list(range(30, 60))


@pytest.mark.parametrize(
    "change",
    [{"lr": 2e-3}, {"seed": 1}, {"dead_after_tokens": 128 * 7}, {"tokens": 128 * 30}, {"version": 2}],
    ids=str,
)
def test_another_spec_starts_afresh(open_member, rows, steps, change):
    short = open_member("shared")
    train({"a": short}, rows)
    short.draft.publish({})
    steps.clear()
    train({"a": open_member("shared", **({"tokens": 128 * 60} | change))}, rows)
    assert steps[0] == 0


def test_a_run_that_is_not_published_or_is_damaged_is_not_gone_on_from(open_member, steps):
    rows = Rows(planted()[0])
    short = open_member("shared")
    train({"a": short}, rows)
    steps.clear()
    train({"a": open_member("shared", tokens=128 * 50)}, rows)
    assert steps[0] == 0
    artefact = short.draft.publish({})
    path = artefact.file("before_decay.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    steps.clear()
    train({"a": open_member("shared", tokens=128 * 60)}, rows)
    assert steps[0] == 0


def test_milestones_that_were_passed_come_along(open_member, rows, steps):
    short = open_member("shared", milestones=(128 * 10, 128 * 30))
    train({"a": short}, rows)
    short.draft.publish({})
    steps.clear()
    at = (128 * 10, 128 * 30, 128 * 45)
    extended, whole = (open_member(place, tokens=128 * 60, milestones=at) for place in ("shared", "elsewhere"))
    train({"a": extended}, rows, held_out_xd=rows.rows_md[:500])
    assert steps[0] == 30
    train({"a": whole}, rows, held_out_xd=rows.rows_md[:500])
    for tokens in at:
        name = f"milestones/{tokens}/autoencoder.safetensors"
        assert extended.draft.file(name).read_bytes() == whole.draft.file(name).read_bytes()
    assert extended.draft.exists("milestones.parquet")
    steps.clear()
    train({"a": open_member("shared", tokens=128 * 61, milestones=(128 * 20,))}, rows)
    assert steps[0] == 0  # nobody kept the milestone that this one has to have
