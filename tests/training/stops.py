"""Trainings that are killed and terminated, for `make soak` and a sample of it for the tests.

A chain trains a few autoencoders in one process after another, each struck at a random moment, until all are finished.
After the first death one autoencoder joins. In the end each must equal its own solo run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from assets.interrupts import interrupts_between_steps
from sae_pipeline.store import Draft
from sae_pipeline.training import Member, train
from sae_pipeline.training import run as run_module
from sae_pipeline.training.log import TIMING
from tests.store.harm import CALLS, in_child
from tests.training.training_doubles import Rows, make_spec, planted

BATCH = 128
SPECS = {
    "plain": make_spec(tokens=BATCH * 30, milestones=(BATCH * 8, BATCH * 16)),
    "clipped": make_spec(tokens=BATCH * 24, seed=1, grad_clip=0.01, resample=(0.5,)),
    "added": make_spec(tokens=BATCH * 27, recipe="relu", k=None, target_l0=3.0, auxk_k=None, n=80),
}
"""What a chain trains; the last joins after the first death."""
STEPS = sum(spec.steps for spec in SPECS.values())


def rows() -> Rows:
    """What all chains train on."""
    return Rows(planted(4000)[0])


def work(place: Path, names: list[str], data: Rows, every_s: float) -> None:
    """Train what is not finished, as an asset does."""
    torch.set_num_threads(1)
    with ExitStack() as held, interrupts_between_steps() as interrupted:
        members = {name: Member(SPECS[name], held.enter_context(_draft(place, name))) for name in names}
        train(members, data, checkpoint_every_s=every_s, should_stop=interrupted)


def _draft(place: Path, name: str) -> Draft:
    return Draft.open(place / name, stage="autoencoder", key=SPECS[name].key, identity="0" * 64, lineage={"name": name})


def struck(number: signal.Signals, at: int, note: Path, work: Callable[[], None]) -> None:
    """Work, send this process a signal at the `at`-th step or call that changes the disk, and count the steps made."""
    events, made = 0, 0

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal events, made
            events += 1
            if events == at:
                os.kill(os.getpid(), number)
            made += real is advance
            return real(*given, **options)

        return call

    advance = run_module.Run.advance
    run_module.Run.advance = watched(advance)  # type: ignore[method-assign]
    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    try:
        work()
    finally:
        with note.open("w") as file:
            file.write(f"{events} {made}")


def alone(folder: Path, data: Rows) -> int:
    """Train each by itself under `folder`/alone; the events that one process takes for all."""
    note = folder / "note"
    for name in SPECS:
        in_child(lambda name=name: work(folder / "alone", [name], data, 1e9))  # type: ignore[misc]
    code = in_child(lambda: struck(signal.SIGTERM, 0, note, lambda: work(folder / "together", list(SPECS), data, 0.0)))
    assert code == 0
    return int(note.read_text().split()[0])


def chain(folder: Path, seed: int, numbers: tuple[signal.Signals, ...], events: int, data: Rows) -> dict[str, Any]:
    """One chain: its deaths by signal, and what went wrong."""
    drawn, place, note = random.Random(seed), folder / f"chain-{seed}", folder / f"note-{seed}"
    deaths, made, names, failures = Counter[str](), 0, list(SPECS)[:-1], list[str]()
    for _ in range(1000):
        number, at = drawn.choice(numbers), drawn.randint(1, max(2, events // 3))
        every_s = (
            drawn.choice((0.0, 1e9)) if number == signal.SIGTERM else 0.0
        )  # without a checkpoint a kill undoes all
        code = in_child(lambda: struck(number, at, note, lambda: work(place, names, data, every_s)))  # noqa: B023
        if number == signal.SIGTERM or code == 0:
            made += int(note.read_text().split()[1])
        if code == 0 and len(names) == len(SPECS):
            break
        deaths.update({signal.Signals(number).name} if code else ())
        names = list(SPECS)
    if signal.SIGKILL not in numbers and made != STEPS:
        failures.append(f"seed {seed}: {made} steps were made, not {STEPS}: SIGTERM lost or repeated some")
    failures += [f"seed {seed}: {line}" for line in unlike(folder / "alone", place)]
    shutil.rmtree(place)
    return {"deaths": dict(deaths), "failures": failures}


def unlike(one: Path, other: Path) -> Iterator[str]:
    """What tells the trained autoencoders of two folders apart."""
    for name, spec in SPECS.items():
        kept = [f"milestones/{tokens}/autoencoder.safetensors" for tokens in spec.milestones or ()]
        for file in ("autoencoder.safetensors", *kept):
            paths = [folder / name / file for folder in (one, other)]
            if not paths[1].exists() or paths[0].read_bytes() != paths[1].read_bytes():
                yield f"{name}/{file} differs"
        logs = [folder / name / "training.parquet" for folder in (one, other)]
        if not logs[1].exists() or not _log(logs[0]).equals(_log(logs[1])):
            yield f"{name}/training.parquet differs"
        if (other / name / "checkpoint.safetensors").exists():
            yield f"{name} left a checkpoint"


def _log(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).drop(columns=list(TIMING))


def strike_trainers(folder: Path, seed: int, terms: int, kills: int) -> dict[str, Any]:
    """Chains until there were so many deaths of each kind: in some SIGTERM alone, in others both."""
    data = rows()
    events = alone(folder, data)
    deaths, failures, number = Counter[str](), list[str](), 0
    while deaths["SIGTERM"] < terms or deaths["SIGKILL"] < kills:
        both = number % 2 == 1
        numbers = (signal.SIGTERM, signal.SIGKILL) if both else (signal.SIGTERM,)
        found = chain(folder, seed * 1000 + number, numbers, events, data)
        deaths.update(found["deaths"])
        failures += found["failures"]
        number += 1
    return {"deaths": dict(deaths), "chains": number, "failures": failures}
