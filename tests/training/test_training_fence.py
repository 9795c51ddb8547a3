"""One trainer for one autoencoder: a second is turned away, and one whose draft was taken from it stops."""

import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from sae_pipeline.store import Busy, Draft, PipelineError
from sae_pipeline.training import run as run_module
from sae_pipeline.training import train

HOLD = """
import sys
from pathlib import Path
from sae_pipeline.store import Draft
with Draft.open(Path(sys.argv[1]), stage="autoencoder", key="topk-n64-k3", identity="0" * 64, lineage={}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_is_turned_away_until_the_first_is_dead(member, tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=str(first.pid)):
            member("a")
        first.send_signal(signal.SIGKILL)
        first.wait()
        member("a")


def test_an_orphan_stops_at_its_next_checkpoint_and_harms_nothing(member, rows, monkeypatch, tmp_path):
    """Its folder is cleared away and another begins there: what the orphan knows must not reach the other's draft."""
    orphan, advance = member("a"), run_module.Run.advance

    def take_over(self, *given):
        advance(self, *given)
        if self.step == 10:
            shutil.rmtree(tmp_path / "a")
            held.enter_context(
                Draft.open(tmp_path / "a", stage="autoencoder", key="topk-n64-k3", identity="1" * 64, lineage={})
            )

    monkeypatch.setattr(run_module.Run, "advance", take_over)
    with ExitStack() as held, pytest.raises(PipelineError, match="moved away while in work"):
        train({"a": orphan}, rows, checkpoint_every_s=0.0)
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {"draft.json", ".lock"}
