"""Weights kept on the way: as if the run had ended there, listed with the artefact, the same after a kill."""

import pandas as pd
import pytest
import torch

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.store import Artefact, Damaged
from sae_pipeline.training import measure, train
from sae_pipeline.training import run as run_module

BATCH = 128
AT = (BATCH * 5, BATCH * 10, BATCH * 20)


def test_a_milestone_is_what_the_run_would_have_saved_had_it_ended_there(member, rows):
    """Without a decay a shorter budget is a prefix of a longer one."""
    held_out = rows.rows_md[-700:]
    whole = member("whole", milestones=AT, decay_last=0.0)
    train({"a": whole}, rows, held_out_xd=held_out)
    for tokens in AT:
        short = member(f"short-{tokens}", tokens=tokens, decay_last=0.0)
        train({"a": short}, rows)
        kept = Autoencoder.load(whole.draft.path / "milestones" / str(tokens))
        assert torch.equal(kept.W_dec, Autoencoder.load(short.draft.path).W_dec)
        assert kept.provenance["training"] == {"tokens": tokens, "step": tokens // BATCH} | vars(
            measure(kept, held_out)
        )
    table = pd.read_parquet(whole.draft.file("milestones.parquet"))
    assert table["tokens"].tolist() == [*AT, 40 * BATCH] and table["nmse"].is_monotonic_decreasing
    assert table["nmse"].iloc[-1] == whole.draft.read_json("training.json")["nmse"]
    assert (table["mean_l0"] <= 3).all() and set(table["n_rows"]) == {700}


def test_milestones_do_not_change_what_is_trained(member, rows):
    plain, kept = member("plain"), member("kept", milestones=AT)
    train({"a": plain, "b": kept}, rows)
    one, other = (m.draft.file("autoencoder.safetensors").read_bytes() for m in (plain, kept))
    assert one == other and not (plain.draft.path / "milestones").exists()


def test_milestones_are_part_of_what_is_published(member, rows):
    m = member(milestones=AT)
    train({"a": m}, rows)
    artefact = m.draft.publish({})
    assert {f"milestones/{tokens}/autoencoder.safetensors" for tokens in AT} | {"milestones.parquet"} <= set(
        artefact.files
    )
    path = artefact.file(f"milestones/{AT[0]}/autoencoder.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(Damaged, match="sha256"):
        Artefact.open(artefact.path)


@pytest.mark.parametrize("step", [4, 5, 6, 10, 19])
def test_a_crash_about_a_milestone_loses_none(member, rows, monkeypatch, step):
    whole, broken = member("whole", milestones=AT), member("broken", milestones=AT)
    train({"a": whole}, rows)
    advance = run_module.Run.advance

    def crash(self, x_bd, waited_s):
        if self.step == step:
            raise RuntimeError("the machine went away")
        advance(self, x_bd, waited_s)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "advance", crash)
        with pytest.raises(RuntimeError, match="went away"):
            train({"a": broken}, rows, checkpoint_every_s=0.0)
    broken.draft.close()
    again = member("broken", milestones=AT)
    train({"a": again}, rows)
    names = [f"milestones/{tokens}/{name}" for tokens in AT for name in ("autoencoder.safetensors", "config.json")]
    for name in [*names, "milestones.parquet"]:
        assert again.draft.file(name).read_bytes() == whole.draft.file(name).read_bytes(), name
