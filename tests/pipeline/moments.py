"""Counting what a run does that a crash could tear, and dying at a chosen one: a file, a link, a training step, …"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

CHECKPOINT_STEPS = 7  # in place of seconds, so that the same run always saves at the same steps
STAGE_OF = {
    "tokens": "tokens",
    "activations": "activations",
    "dataset": "dataset",
    "evaluation_set": "activations",
    "autoencoder": "autoencoders",
    "codes": "evaluation",
    "eval_density": "evaluation",
    "eval_downstream": "evaluation",
    "eval_reconstruction": "evaluation",
    "champion": "evaluation",
    "evaluation_table": "evaluation",
    "scaling_laws": "scaling",
    "report": "scaling",
}
"""Every asset with its stage."""
Phase = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Moment:
    """The `count`-th operation of a kind (see `_kind_of`, and step, forward, event) while an asset is being made.

    `half` is for the kinds "write" and "plain copy": half of the bytes are there. Kind "end" is the end of the asset's
    step, before Dagster hears of its success.
    """

    asset: str
    kind: str
    count: int = 1
    phase: Phase = "before"


class Watch:
    """Counts operations by asset and kind, and kills the process at whichever of its moments comes first."""

    def __init__(self, outputs: Path, moments: Iterable[Moment], tell: int) -> None:
        self._outputs, self._tell = outputs, tell
        self._moments = {(moment.asset, moment.kind, moment.count): moment for moment in moments}
        self._lock, self._asset = threading.Lock(), "start"
        self._counts: dict[str, Counter[str]] = {}

    def install(self) -> None:
        """Wrap the operations in this process, for good."""
        import dagster as dg

        from sae_pipeline.subjects import Subject
        from sae_pipeline.training.run import Run

        for name, path_at in (("replace", 1), ("link", 1), ("mkdir", 0), ("unlink", 0), ("fsync", 0)):
            self._wrap(os, name, self._file_kind(name, path_at))
        shutil.copy = self._half_copied(shutil.copy)
        self._wrap(Run, "advance", lambda *given: "step")
        for name in ("run", "resume"):
            self._wrap(Subject, name, lambda *given: "forward")
        os.write = self._torn(os.write)
        dg.DagsterInstance.handle_new_event = self._heard(dg.DagsterInstance.handle_new_event)

        def save_if_due(run: Run, every_s: float) -> None:
            if run.step % CHECKPOINT_STEPS == 0:
                run.save()

        Run.save_if_due = save_if_due

    def say(self, fired: Moment | None) -> None:
        """Tell the parent."""
        told = {"fired": fired and asdict(fired), "counts": {key: dict(value) for key, value in self._counts.items()}}
        with os.fdopen(os.dup(self._tell), "wb") as pipe:
            pipe.write(json.dumps(told).encode())

    @contextmanager
    def _at(self, kind: str) -> Iterator[Callable[[], bool]]:
        """An operation: dies before or after it; yields what says whether to die in its midst."""
        with self._lock:
            kinds = self._counts.setdefault(self._asset, Counter())
            kinds[kind] += 1
            moment = self._moments.get((self._asset, kind, kinds[kind]))
        if moment is not None and moment.phase == "before":
            self._die(moment)
        yield lambda: moment is not None and moment.phase == "half"
        if moment is not None:
            self._die(moment)

    def _die(self, moment: Moment) -> NoReturn:
        with self._lock:
            self.say(moment)
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        raise AssertionError

    def _wrap(self, owner: Any, name: str, kind_of: Callable[..., str | None]) -> None:
        real = getattr(owner, name)

        def call(*given: Any, **options: Any) -> Any:
            kind = kind_of(*given)
            if kind is None:
                return real(*given, **options)
            with self._at(kind):
                return real(*given, **options)

        setattr(owner, name, call)

    def _file_kind(self, name: str, path_at: int) -> Callable[..., str | None]:
        def kind_of(*given: Any) -> str | None:
            path = _path_of(given[path_at])
            if not path.is_relative_to(self._outputs):
                return None
            return _kind_of(path.relative_to(self._outputs)) if name in ("replace", "link") else name

        return kind_of

    def _torn(self, real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def write(fd: int, data: Any) -> int:
            if not _path_of(fd).is_relative_to(self._outputs):
                return real(fd, data)
            with self._at("write") as torn:
                return real(fd, data[: len(data) // 2] if torn() else data)

        return write

    def _half_copied(self, real: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def copy(source: Any, target: Any) -> Any:
            with self._at("plain copy") as torn:
                copied = real(source, target)
                if torn():
                    os.truncate(target, os.path.getsize(target) // 2)
                return copied

        return copy

    def _heard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Dagster's log: which asset is being made, materialisations as operations, the end of an asset."""

        def handle_new_event(instance: Any, event: Any, **options: Any) -> Any:
            kind, step = event.dagster_event_type and event.dagster_event_type.value, event.step_key
            if kind == "STEP_START":
                self._asset = step
            name = {"ASSET_MATERIALIZATION": "event", "STEP_SUCCESS": "end"}.get(kind)
            if name is None:
                return real(instance, event, **options)
            with self._at(name):
                return real(instance, event, **options)

        return handle_new_event


def _path_of(place: Any) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place))


_KIND_OF_NAME = {
    "artefact.json": "artefact",
    "draft.json": "draft",
    "zarr.json": "array",
    "checkpoint.safetensors": "checkpoint",
    "current.json": "pointer",
    "best.json": "champion",
}


def _kind_of(path: Path) -> str:
    """What a file that comes into being is, by its path below the output folder."""
    if path.name in _KIND_OF_NAME:
        return _KIND_OF_NAME[path.name]
    if path.parts[0] != "artefacts":
        return "verdict" if "gates" in path.parts else "copy"
    if "commits" in path.parts:
        return "commit"
    return "shard" if "c" in path.parts else "file"
