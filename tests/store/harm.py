"""Harm, for `make soak` and a sample of it for the tests: files that change on the disk, writers that are killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_pipeline.activations import Moments
from sae_pipeline.dataset import build_dataset
from sae_pipeline.store import Artefact, Draft
from sae_pipeline.store.errors import PathError
from tests.pipeline.likeness import differences

HARMS = ("flipped", "cut short", "exchanged", "missing")
CALLS = ("write", "fsync", "link", "replace", "mkdir", "unlink")
SHARDS, SHARD_ROWS, D = 5, 64, 8
ROWS_XD = np.random.default_rng(2).standard_normal((SHARDS * SHARD_ROWS - 9, D)).astype(np.float16)


@contextlib.contextmanager
def harmed(harm: str, path: Path, other: Path, drawn: random.Random) -> Iterator[set[Path]]:
    """Do harm to a file, and undo it in the end; yields the files that are not as published meanwhile.

    `other` is the file that it is exchanged with.
    """
    files = {file: file.read_bytes() for file in (path, other)}
    data, position = bytearray(files[path]), drawn.randrange(len(files[path]))
    if harm == "flipped":
        data[position] ^= 1 << drawn.randrange(8)
        path.write_bytes(data)
    elif harm == "cut short":
        path.write_bytes(data[:position])
    elif harm == "exchanged":
        path.write_bytes(files[other])
        other.write_bytes(files[path])
    else:
        path.unlink()
    try:
        yield {path, other} if harm == "exchanged" else {path}
    finally:
        for file, content in files.items():
            file.write_bytes(content)


def error_path(artefact_dir: Path) -> Path | None:
    """Read all of an artefact the way stages do; the file that an error names, or None if there is none."""
    from sae_pipeline.autoencoders import Autoencoder

    try:
        found = Artefact.open(artefact_dir)
        for name in found.files:
            found.file(name)
        for name in found.arrays:
            array = found.array(name)
            array.read(0, array.n_rows)
        if found.exists("autoencoder.safetensors"):
            Autoencoder.load(artefact_dir)
    except PathError as error:
        return error.path
    return None


def make(root: Path) -> None:
    """Write, commit and publish shards with their moments; then the dataset that merges them."""
    draft = Draft.open(root / "acts", stage="activations", key="a", identity="a" * 64, lineage={})
    with draft:
        array = draft.array("acts", shape=ROWS_XD.shape, dtype="float16", shard_rows=SHARD_ROWS, chunk_rows=16)
        for i in range(SHARDS):
            rows_xd = ROWS_XD[array.rows(i)]
            array.write_shard(i, rows_xd, {"moments": Moments.of(torch.from_numpy(rows_xd)).to_json()})
        draft.publish({})


def merge(root: Path) -> None:
    """The dataset of what `make` made."""
    offsets = np.append(np.arange(0, len(ROWS_XD), 16), len(ROWS_XD))
    with Draft.open(root / "dataset", stage="dataset", key="d", identity="d" * 64, lineage={}) as draft:
        documents = np.arange(len(offsets) - 1)
        build_dataset(
            draft,
            Artefact.open(root / "acts"),
            normaliser="paper",
            seed=0,
            row_offsets=offsets,
            document_of_context=documents,
            sample_rows=64,
        )
        draft.publish({})


def finish(root: Path) -> None:
    """Whatever is not published yet."""
    for name, work in (("acts", make), ("dataset", merge)):
        if not (root / name / "artefact.json").exists():
            work(root)


def start_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # idle threads of numpy's; the child starts none
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def wait(pid: int) -> int:
    """The exit code of a child, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child to its end; its exit code, negative if a signal ended it."""
    return wait(start_child(work))


def dying(die_at: int, phase: str, work: Callable[[], object], tell: Callable[[str, int], object]) -> None:
    """Work until the `die_at`-th call that changes the disk; die before, in the midst of, or after it by SIGKILL."""
    count = 0

    def lethal(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == die_at:
                tell(name, count)
                if phase == "half" and name == "write":
                    real(given[0], given[1][: len(given[1]) // 2])
                elif phase == "after":
                    real(*given, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **options)

        return call

    for name in CALLS:
        setattr(os, name, lethal(name, getattr(os, name)))
    work()
    tell("end", count)


def kill_writers(folder: Path, seed: int, trials: int) -> dict[str, Any]:
    """Kill a writer at random calls until its artefacts are published; they must be those of one left alone.

    After every death: each committed shard has its rows, each published artefact is whole.
    """
    drawn, deaths, failures = random.Random(seed), Counter[str](), list[str]()
    whole = folder / "whole-writer"
    calls = int(_told(folder, 0, "before", whole)[1])
    while deaths.total() < trials:
        place = folder / f"writer-{deaths.total()}"
        while not (place / "dataset" / "artefact.json").exists() and deaths.total() < trials:
            phase = drawn.choice(("before", "half", "after"))
            name, _ = _told(folder, drawn.randint(1, calls), phase, place)
            deaths.update({name} - {"end"})
            failures += [f"writer, seed {seed}, death {deaths.total()}: {line}" for line in harm_done(place)]
        in_child(lambda: finish(place))  # noqa: B023
        failures += [f"writer, seed {seed}, in the end: {line}" for line in differences(whole, place)]
        shutil.rmtree(place)
    return {"deaths": deaths.total(), "by_call": dict(deaths), "failures": failures}


def _told(folder: Path, die_at: int, phase: str, place: Path) -> tuple[str, int]:
    """What a child died of, or "end" and how many calls it made."""
    note = folder / "note"

    def tell(name: str, count: int) -> None:
        with note.open("w") as file:  # not by one of the calls that are counted
            file.write(f"{name} {count}")

    in_child(lambda: dying(die_at, phase, lambda: finish(place), tell))
    name, count = note.read_text().split()
    note.unlink()
    return name, int(count)


def harm_done(place: Path) -> Iterator[str]:
    """What is wrong with committed shards and published artefacts."""
    if (place / "acts" / "acts" / "zarr.json").exists():
        yield from _lost_rows(place / "acts")
    for name in ("acts", "dataset"):
        if (place / name / "artefact.json").exists():
            yield from (
                f"{name}: {damage.path.name}: {damage.cause}" for damage in Artefact.open(place / name).verify()
            )


def _lost_rows(path: Path) -> Iterator[str]:
    from sae_pipeline.store import ShardedArray

    array = ShardedArray(path, "acts")
    for i in range(SHARDS):
        if array.is_committed(i):
            try:
                found = np.array_equal(array.read_shard(i), ROWS_XD[array.rows(i)])
            except PathError as error:
                yield f"committed shard {i}: {error}"
            else:
                if not found:
                    yield f"committed shard {i} has other rows"
