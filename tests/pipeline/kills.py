"""Kill -9 at chosen moments of a small study: children that kill themselves, forked from one warm parent.

A trial is the command line itself, `sae-pipeline run`, in a child with a Dagster home and an output folder on disk.
The child sends itself SIGKILL just before, in the midst of, or just after one of the operations that `Watch` counts.
Run as a module it performs the campaign of the tests: `python -m tests.pipeline.kills FOLDER`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.pipeline.moments import Moment, Watch

CHECKOUT = Path(__file__).parents[2]
STUDY = CHECKOUT / "studies" / "smoke.yaml"
# The smoke study cut down to seconds, with several shards of everything that has shards.
SETTINGS = (
    "subject.device=cpu",
    "corpora.0.tokens=40k",
    "tokens.train=12k",
    "tokens.held_out=2k",
    "activations.shard_tokens=2Ki",
    "activations.micro_batch=16",
    "dataset.sample_rows=1024",
    "autoencoders.defaults.batch=256",
    "autoencoders.defaults.tokens=12k",
    "autoencoders.defaults.ema=0.9",
    "autoencoders.defaults.dead_after_tokens=2k",
    "autoencoders.grids=[{recipe: topk, n: 128, k: 4}, {recipe: relu, n: 128, l1: 0.05}]",
    "evaluation.tokens=1500",
    "evaluation.bootstrap.resamples=100",
)
LIMIT_S = 180  # of one trial; a child that hangs is ended by SIGALRM and counts as a failure


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: the moment that killed it or None, the status of a child that was not, what it counted."""

    fired: Moment | None
    status: int | None
    seconds: float
    counts: dict[str, dict[str, int]]
    log: str

    @property
    def completed(self) -> bool:
        """Whether the command said that everything is made."""
        return self.fired is None and self.status == 0


def preload() -> None:
    """Import once, before any fork, what every child needs; no thread may have been started by it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import dagster as dg
    import torch

    torch.set_num_threads(1)
    ours = ("cli", "definitions", "evaluation", "planning.report_inputs", "subjects", "tokens", "training")
    others = ("great_expectations", "matplotlib.backends.backend_agg", "scipy.optimize", "transformers.models.gpt2")
    for name in ("assets.launching", *others, *(f"sae_pipeline.{name}" for name in ours)):
        importlib.import_module(name)
    importlib.import_module("transformers.models.gpt2.modeling_gpt2")
    with tempfile.TemporaryDirectory() as home:
        dg.DagsterInstance.local_temp(home).dispose()  # imports its storage
    if threading.active_count() > 1:
        raise RuntimeError(f"threads before the first fork: {threading.enumerate()}")


class Trial:
    """A run of the study in `folder`, in a child process, that dies at the first of `moments` (none: completes).

    `run`, given the output folder, is what the child does and returns its exit status; default the whole command.
    """

    def __init__(self, folder: Path, moments: Iterable[Moment] = (), run: Callable[[Path], int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._started_s = folder / "log.txt", time.monotonic()
        self._told, tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._told)
            _child(folder, self._log, moments, tell, run or command)
        os.close(tell)

    def wait(self) -> Outcome:
        """Wait for the child to end."""
        with os.fdopen(self._told, "rb") as pipe:
            told = json.loads(pipe.read() or b"{}")
        _, status = os.waitpid(self._pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and told.get("fired")
        return Outcome(
            fired=Moment(**told["fired"]) if killed else None,
            status=None if killed else os.waitstatus_to_exitcode(status),
            seconds=time.monotonic() - self._started_s,
            counts=told.get("counts", {}),
            log=self._log.read_text()[-4000:],
        )


def _child(folder: Path, log: Path, moments: Iterable[Moment], tell: int, run: Callable[[Path], int]) -> NoReturn:
    """Everything a child does; never returns, whatever happens."""
    status = 3
    try:
        signal.alarm(LIMIT_S)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["DAGSTER_HOME"] = str(folder / "home")
        watch = Watch(folder / "outputs", moments, tell)
        watch.install()
        status = run(folder / "outputs")
        watch.say(None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(outputs: Path) -> int:
    """`sae-pipeline run` on the small study; its exit status."""
    from sae_pipeline import cli

    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    return cli.main(["run", str(STUDY), "--outputs", str(outputs), *overrides])


CAMPAIGN = (
    Moment("tokens", "write", 3, "half"),
    Moment("tokens", "commit", 1, "after"),
    Moment("tokens", "artefact", 1, "after"),
    Moment("activations", "forward", 4),
    Moment("activations", "shard", 2),
    Moment("activations", "artefact"),
    Moment("evaluation_set", "forward", 5),
    Moment("evaluation_set", "commit", 2, "after"),
    Moment("evaluation_set", "pointer"),
    Moment("dataset", "write", 5, "half"),
    Moment("dataset", "artefact", 1, "after"),
    Moment("dataset", "pointer", 1, "after"),
    Moment("autoencoder", "step", 9),
    Moment("autoencoder", "step", 40, "after"),
    Moment("autoencoder", "checkpoint", 4, "after"),
    Moment("autoencoder", "unlink"),
    Moment("autoencoder", "artefact", 2, "after"),
    Moment("codes", "shard", 3),
    Moment("codes", "artefact", 1, "after"),
    Moment("eval_downstream", "forward", 2),
    Moment("champion", "champion", 1, "after"),
    Moment("champion", "pointer", 1, "after"),
    Moment("evaluation_table", "pointer", 1, "after"),
    Moment("scaling_laws", "artefact", 1, "after"),
    Moment("scaling_laws", "copy", 2),
    Moment("report", "pointer", 1, "after"),
)
"""Moments of each asset in the order in which they are to strike; which asset comes first is for the runs to say."""


def campaign(folder: Path) -> dict[str, Any]:
    """Kill the same study at every moment of `CAMPAIGN`, until it completes; beside it, a run that is left alone.

    A trial dies at the next moment of whichever asset comes to its own first.

    Outputs lie in `<folder>/killed` and `<folder>/whole`. Returns what was seen: the trials, each with the state of
    the outputs after it, and the counts of the run that was left alone.
    """
    preload()
    whole = Trial(folder / "whole")
    waiting, trials = list(CAMPAIGN), list[dict[str, Any]]()
    while not trials or trials[-1]["fired"] is not None:
        armed = {moment.asset: moment for moment in reversed(waiting)}
        outcome = Trial(folder / "killed", armed.values()).wait()
        trials.append(asdict(outcome) | {"state": observe(folder / "killed" / "outputs")})
        waiting = [moment for moment in waiting if moment != outcome.fired]
    return {"trials": trials, "whole": asdict(whole.wait())}


def observe(outputs: Path) -> dict[str, Any]:
    """What lies in an output folder.

    published: folder → inode and modification time of its artefact.json. drafts: folders without one. pointers: node →
    folder. temporaries, locked (lock files that name a process), checkpoints: files.
    """
    found = [path for path in outputs.rglob("*") if path.is_file()]
    names = {path: path.relative_to(outputs).as_posix() for path in found}
    seals = {path.parent.relative_to(outputs).as_posix(): path.stat() for path in found if path.name == "artefact.json"}
    begun = {path.parent.relative_to(outputs).as_posix() for path in found if path.name == "draft.json"}
    pointers = [json.loads(path.read_text()) for path in found if path.name == "current.json"]
    return {
        "published": {folder: [stat.st_ino, stat.st_mtime_ns] for folder, stat in seals.items()},
        "drafts": sorted(begun - set(seals)),
        "pointers": pointers[0] if pointers else {},
        "temporaries": sorted(name for path, name in names.items() if path.suffix in (".tmp", ".partial")),
        "locked": sorted(name for path, name in names.items() if path.name == ".lock" and path.read_bytes()),
        "checkpoints": sorted(name for path, name in names.items() if path.name == "checkpoint.safetensors"),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "record.json").write_text(json.dumps(campaign(place)))
