"""Kill or cut the power at any operating-system call of making an artefact, resume, compare with an untouched run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_artefact import ROWS_XD, open_draft

from sae_pipeline.store import Artefact, NotPublished

CALLS = ("open", "write", "fsync", "link", "replace", "unlink", "mkdir")


class Killed(OSError):
    pass


class Machine:
    """Counts the calls that change the disk; from call `die_at` on it lets none through, cleanups neither."""

    def __init__(self, die_at: int | None) -> None:
        self.die_at, self.count, self.events = die_at, 0, list[tuple[str, str]]()
        self.durable: set[str] = set()  # files whose bytes were synced, under every name they got since
        self.real = {name: getattr(os, name) for name in CALLS}

    def wrap(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            dead = self.die_at is not None and self.count >= self.die_at
            self.count += 1
            if dead:
                raise Killed(f"dead at {name}")
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name in ("fsync", "write") else str(arguments[-1])
            self.events.append((name, target))
            if name == "fsync" or (name in ("link", "replace") and str(arguments[0]) in self.durable):
                self.durable.add(target)
            # What fsync does is modelled in `lose_unsynced`; a real one would only cost time.
            return None if name == "fsync" else self.real[name](*arguments, **options)

        return call

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patched:
            for name in CALLS:
                patched.setattr(os, name, self.wrap(name))
            yield


def run(path: Path) -> Artefact:
    """Two shards, the last one short, and a file."""
    with open_draft(path) as draft:
        acts = draft.array("acts", shape=(60, 6), dtype="float16", shard_rows=36, chunk_rows=12)
        for i in range(2):
            acts.write_shard(i, ROWS_XD[acts.rows(i)], {"shard": i})
        draft.write_json("statistics.json", {"mean": [0.25, 1.5]})
        return draft.publish({"rows": 60})


def content(artefact: Artefact) -> dict[str, Any]:
    acts = artefact.array("acts")
    files = {name: artefact.file(name).read_bytes() for name in artefact.files}
    return {"rows": acts.read(0, 60).tobytes(), "records": [acts.commit(0), acts.commit(1)], "files": files}


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_a_death_at_any_call_leaves_nothing_or_something_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_cut: bool
) -> None:
    whole = Machine(None)
    with whole.running(monkeypatch):
        artefact = run(tmp_path / "whole")
    expected = content(artefact)
    assert whole.count > 80
    published_early = 0
    for die_at in range(power_cut, whole.count, 2):  # each mode takes every second call
        path, machine = tmp_path / str(die_at), Machine(die_at)
        with machine.running(monkeypatch), pytest.raises(Killed):
            run(path)
        if power_cut and path.exists():
            lose_unsynced(path, machine)
        with Machine(None).running(monkeypatch):
            published_early += finish(path, expected)
    # Only between the link of artefact.json and the end can a run die after it published.
    assert 1 <= published_early <= 12


def finish(path: Path, expected: dict[str, Any]) -> bool:
    """Resume what died and compare; True if it had been published before it died."""
    try:
        artefact, early = Artefact.open(path), True
    except NotPublished:
        artefact, early = run(path), False
    assert artefact.verify() == []
    assert content(artefact) == expected
    return early


def lose_unsynced(path: Path, machine: Machine) -> None:
    """What a power cut may do: every file that was never synced loses its second half."""
    for file in [file for file in path.rglob("*") if file.is_file() and file.name != ".lock"]:
        if str(file) not in machine.durable:
            with file.open("r+b") as torn:
                torn.truncate(file.stat().st_size // 2)


def test_committed_shards_are_not_written_again_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Machine(None)
    with whole.running(monkeypatch):
        run(tmp_path / "whole")
    first = next(i for i, event in enumerate(whole.events) if event[0] == "link" and event[1].endswith("acts/0.json"))
    machine = Machine(first + 3)
    with machine.running(monkeypatch), pytest.raises(Killed):
        run(tmp_path / "killed")
    with open_draft(tmp_path / "killed") as draft:
        acts = draft.array("acts")
        assert [acts.write_shard(i, ROWS_XD[acts.rows(i)]) for i in range(2)] == [False, True]


def test_bytes_are_durable_before_the_record_that_vouches_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(None)
    with machine.running(monkeypatch):
        artefact = run(tmp_path / "a")
    root, events = artefact.path, machine.events

    def at(name: str, target: Path) -> int:
        return events.index((name, str(target)))

    for i in range(2):
        record, shard = root / "commits" / "acts" / f"{i}.json", root / "acts" / "c" / str(i) / "0"
        assert str(shard) in machine.durable  # under the name that it was written by
        named, made = at("replace", shard), at("mkdir", shard.parent)
        synced = [events.index(("fsync", str(shard.parent)), named)]
        synced += [events.index(("fsync", str(shard.parent.parent)), made)]
        assert named < max(synced) < at("link", record) < len(events)
        assert ("fsync", str(record.parent)) in events[at("link", record) :]
    published = at("link", root / "artefact.json")
    before = {target for name, target in events[:published] if name == "fsync"}
    assert {str(root / name) for name in artefact.files} <= before
    assert {str(path) for path in [root, *root.rglob("*")] if path.is_dir()} <= before
    assert ("fsync", str(root)) in events[published:]
