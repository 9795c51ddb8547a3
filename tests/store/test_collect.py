"""Collection: what a pointer leads to is never touched, whatever else happens at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.store import Artefact, Draft, NotPublished, Outputs, Pointers, atomic, collect, garbage, locks
from sae_pipeline.store.artefact import ARTEFACT
from sae_pipeline.store.atomic import write_json_atomic
from sae_pipeline.store.errors import Busy, Damaged
from sae_pipeline.store.locks import FileLock, holder
from tests.store.harm import in_child, start_child

NOW = garbage.Policy(older_than_s=0, wanted=())
STAGES = ("tokens", "activations", "dataset")


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def open_draft(outputs: Outputs, name: str, made_from: Iterable[str] = (), stage: str = "dataset") -> Draft:
    lineage = {"config": {"lr": 0.1}, "inputs": {source: identity(source) for source in made_from}}
    path = outputs.artefact_dir(stage, name, identity(name))
    return Draft.open(path, stage=stage, key=name, identity=identity(name), lineage=lineage)


def publish(outputs: Outputs, name: str, made_from: Iterable[str] = (), stage: str = "dataset") -> Artefact:
    with open_draft(outputs, name, made_from, stage) as draft:
        draft.write_bytes("data.bin", name.encode() * 100)
        return draft.publish({"name": name})


def claim(outputs: Outputs, pointers: Pointers, name: str) -> bool:
    """Reuse what is published, as a run does: look and point in one breath; False if there is nothing."""
    with outputs.keeping():
        found = outputs.published("dataset", name, identity(name))
        if found is not None:
            pointers.set("dataset", found)
        return found is not None


def crown(outputs: Outputs, study: str, best: Artefact, *challengers: Artefact) -> None:
    history = [{"challenger": artefact.identity} for artefact in challengers]
    entry = {"artefact": best.path.relative_to(outputs.root).as_posix(), "history": history}
    outputs.study_dir(study).mkdir(parents=True, exist_ok=True)
    (outputs.study_dir(study) / "best.json").write_text(json.dumps({"site/key": entry}))
    (outputs.study_dir(study) / "current.json").write_text("{}\n")


def left(outputs: Outputs) -> set[str]:
    """Keys of the folders that are there, and nothing in any trash."""
    assert not list(outputs.root.glob("artefacts/*/.trash/*"))
    return {path.name.rsplit("-", 1)[0] for path in outputs.root.glob("artefacts/[!.]*/[!.]*")}


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "outputs")


GRAPHS = st.lists(st.tuples(st.sampled_from(STAGES), st.sets(st.integers(0, 7)), st.booleans()), max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    graph=GRAPHS,
    current=st.lists(st.sets(st.integers(0, 7)), max_size=3),
    champions=st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3)), max_size=2),
    wanted=st.sets(st.integers(0, 7)),
    held=st.sets(st.integers(0, 7)),
)
def test_what_pointers_lead_to_stays_and_the_rest_goes(
    tmp_path_factory: pytest.TempPathFactory,
    graph: list[tuple[str, set[int], bool]],
    current: list[set[int]],
    champions: list[tuple[int, list[int]]],
    wanted: set[int],
    held: set[int],
) -> None:
    """Over random graphs of published and unfinished artefacts, pointers of several studies and champions."""
    outputs = Outputs(tmp_path_factory.mktemp("random"))
    inputs = {f"a{i}": {f"a{j}" for j in made_from if j < i} for i, (_, made_from, _) in enumerate(graph)}
    made: dict[str, Artefact] = {}
    drafts: dict[str, Draft] = {}
    for i, (stage, _, is_published) in enumerate(graph):
        if is_published:
            made[f"a{i}"] = publish(outputs, f"a{i}", inputs[f"a{i}"], stage)
        else:
            drafts[f"a{i}"] = open_draft(outputs, f"a{i}", inputs[f"a{i}"], stage)
    roots: set[str] = set()
    for number, names in enumerate(current):
        for name in {f"a{i}" for i in names} & set(made):
            Pointers(outputs.root, f"study{number}").set(f"node/{name}", made[name])
            roots.add(name)
    for number, (best, history) in enumerate(champions):
        challengers = [f"a{i}" for i in history if f"a{i}" in made]
        if f"a{best}" in made:
            crown(outputs, f"crowned{number}", made[f"a{best}"], *(made[name] for name in challengers))
            roots |= {f"a{best}", *challengers[-1:]}
    for name, draft in drafts.items():
        if int(name[1:]) not in held:
            draft.close()
        if int(name[1:]) in held | wanted:
            roots.add(name)
    expected = set(roots)
    for i in reversed(range(len(graph))):  # inputs have smaller numbers, so one pass from the last is enough
        expected |= inputs[f"a{i}"] if f"a{i}" in expected else set()

    policy = garbage.Policy(older_than_s=0, wanted=[identity(f"a{i}") for i in wanted])
    foreseen = {found.path.name.rsplit("-", 1)[0] for found in garbage.survey(outputs, policy).garbage}
    done = collect.collect(outputs, policy)
    assert left(outputs) == expected
    assert foreseen == set(inputs) - expected == {found.path.name.rsplit("-", 1)[0] for found in done.deleted}
    assert all(made[name].verify() == [] for name in expected & set(made))
    assert done.failed == ()
    for draft in drafts.values():
        draft.close()


def test_a_survey_changes_nothing(outputs: Outputs) -> None:
    publish(outputs, "old")
    before = {path: path.stat().st_mtime_ns for path in outputs.root.rglob("*")}
    assert [found.kind for found in garbage.survey(outputs, NOW).garbage] == ["version"]
    assert {path: path.stat().st_mtime_ns for path in outputs.root.rglob("*")} == before


def test_youth_protects_and_what_is_young_keeps_its_inputs(outputs: Outputs) -> None:
    publish(outputs, "source")
    source = outputs.artefact_dir("dataset", "source", identity("source"))
    seal_again(source, created_at="2020-01-01T00:00:00+00:00")
    publish(outputs, "fresh", ["source"])
    day = garbage.Policy(wanted=())
    found = garbage.survey(outputs, day)
    assert (found.garbage, [item.path.name[:5] for item in found.young]) == ((), ["fresh"])
    seal_again(outputs.artefact_dir("dataset", "fresh", identity("fresh")), created_at="2020-01-01T00:00:00+00:00")
    assert len(collect.collect(outputs, day).deleted) == 2


def seal_again(folder: Path, **changed: Any) -> None:
    document = atomic.unseal(folder / ARTEFACT, (folder / ARTEFACT).read_bytes())
    (folder / ARTEFACT).write_bytes(atomic.seal(document | changed))


@pytest.mark.parametrize(
    ("policy", "stays"),
    [
        (garbage.Policy(0, wanted=None), {"asked", "unasked"}),
        (garbage.Policy(0, wanted=[identity("asked")]), {"asked"}),
        (garbage.Policy(0, wanted=[identity("asked")], drafts=True), set()),
        (garbage.Policy(wanted=()), {"asked", "unasked"}),
    ],
    ids=["not known what is asked for", "asked for", "all drafts", "too young"],
)
def test_unfinished_drafts(outputs: Outputs, policy: garbage.Policy, stays: set[str]) -> None:
    for name in ("asked", "unasked"):
        with open_draft(outputs, name) as draft:
            draft.write_bytes("checkpoint.safetensors", b"half")
    collect.collect(outputs, policy)
    assert left(outputs) == stays


def test_attempts_and_leftovers(outputs: Outputs) -> None:
    with open_draft(outputs, "bad") as draft:
        pass
    draft.path.rename(draft.path.with_name(f"{draft.path.name}.rejected"))
    begun = outputs.artefact_dir("tokens", "begun", identity("begun"))
    begun.mkdir(parents=True)
    FileLock(begun / ".lock").release()
    foreign = outputs.root / "artefacts" / "tokens" / "mine"
    named_alike = outputs.artefact_dir("tokens", "notes", identity("notes"))
    for folder in (foreign, named_alike):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    kept = publish(outputs, "kept")
    outputs.pointers("study").set("dataset", kept)
    old, young = (outputs.study_dir("study") / f".best.json.{mark * 12}.tmp" for mark in "ab")
    in_artefact = kept.path / f".artefact.json.{'c' * 12}.tmp"
    for path in (old, young, in_artefact):
        path.write_bytes(b"half")
    for path in (old, in_artefact):
        os.utime(path, (1, 1))
    (outputs.root / f"{garbage.PROBE}x").mkdir()
    os.utime(outputs.root / f"{garbage.PROBE}x", (1, 1))

    kinds = [found.kind for found in collect.collect(outputs, NOW).deleted]
    assert kinds == ["draft", "rejected", "temporary", "temporary", "temporary"]
    assert left(outputs) == {"mine", "notes", "kept"}
    assert young.exists() and not old.exists() and not in_artefact.exists()
    assert kept.verify() == [] and foreign.is_dir() and not (outputs.root / f"{garbage.PROBE}x").exists()


def test_a_temporary_that_its_writer_renames_meanwhile_is_no_garbage(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.pointers("study").set("dataset", publish(outputs, "kept"))
    renamed = outputs.study_dir("study") / f".best.json.{'a' * 12}.tmp"
    monkeypatch.setattr(garbage, "files_below", lambda folder: [renamed])
    assert garbage.survey(outputs, NOW).garbage == ()


def test_what_cannot_be_understood_is_left_alone(outputs: Outputs, tmp_path: Path) -> None:
    newer, unused = publish(outputs, "newer", ["kept by newer"]), publish(outputs, "unused")
    publish(outputs, "kept by newer")
    seal_again(newer.path, format=99)
    moved = publish(outputs, "moved", ["kept by moved"])
    publish(outputs, "kept by moved")
    shutil.move(moved.path, tmp_path / "elsewhere")
    moved.path.symlink_to(tmp_path / "elsewhere")
    done = collect.collect(outputs, NOW)
    assert [found.path for found in done.deleted] == [unused.path]
    assert "newer version" in done.notes[0]
    assert moved.verify() == []


def test_a_pointer_to_a_folder_of_another_name_keeps_its_inputs(outputs: Outputs) -> None:
    artefact = publish(outputs, "renamed", ["source"])
    source = publish(outputs, "source")
    renamed = artefact.path.rename(artefact.path.with_name("by-hand"))
    outputs.pointers("study").set("dataset", Artefact.open(renamed))
    assert collect.collect(outputs, NOW).deleted == ()
    assert source.verify() == []


def test_no_version_goes_while_a_lineage_cannot_be_read(outputs: Outputs) -> None:
    unused, broken = publish(outputs, "unused"), publish(outputs, "broken", ["unused"])
    outputs.pointers("study").set("dataset", broken)
    for name in (ARTEFACT, "draft.json"):
        (broken.path / name).write_bytes(b"{")
    done = collect.collect(outputs, NOW)
    assert done.deleted == () and str(broken.path) in done.notes[0]
    assert unused.verify() == []
    current = outputs.study_dir("study") / "current.json"
    current.write_text("{")
    with pytest.raises(Damaged):
        collect.collect(outputs, NOW)
    current.rename(outputs.study_dir("study") / "summary.json")
    with pytest.raises(Damaged, match="missing"):
        collect.collect(outputs, NOW)
    assert unused.verify() == []


def test_a_held_draft_keeps_its_inputs_though_its_lock_file_does_not_tell(outputs: Outputs) -> None:
    """A holder on another machine: its process id would mean nothing here, but its lock does."""
    publish(outputs, "source")
    unused = publish(outputs, "unused")
    with open_draft(outputs, "at work", ["source"]) as draft:
        (draft.path / ".lock").write_text("")
        assert garbage.survey(outputs, NOW).in_use == ()
        done = collect.collect(outputs, NOW)
        assert [found.path for found in done.deleted] == [unused.path]
        assert [(found.path, "working on it" in why) for found, why in done.failed] == [(draft.path, True)]
        assert left(outputs) == {"source", "at work"}
        assert draft.publish({}).verify() == []


def test_whoever_claims_between_the_listing_and_the_deletion_wins(outputs: Outputs) -> None:
    artefact = publish(outputs, "reused", ["source"])
    publish(outputs, "source")
    assert len(garbage.survey(outputs, NOW).garbage) == 2
    pointers = outputs.pointers("another")
    assert claim(outputs, pointers, "reused")
    assert collect.collect(outputs, NOW).deleted == ()
    assert artefact.verify() == []


def test_nothing_is_collected_between_the_look_at_an_artefact_and_its_pointer(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact, written = publish(outputs, "a"), []

    def watched(path: Path, value: Any) -> None:
        with pytest.raises(Busy):
            FileLock(outputs.root / "artefacts" / ".collect.lock")
        written.append(path)
        write_json_atomic(path, value)

    monkeypatch.setattr(atomic, "write_json_atomic", watched)
    outputs.pointers("study").set("dataset", artefact)
    outputs.pointers("study").set("dataset", artefact)
    assert len(written) == 1, "a pointer that stands where it should is not written again"


def test_whoever_comes_too_late_is_told(outputs: Outputs) -> None:
    artefact = publish(outputs, "gone")
    collect.collect(outputs, NOW)
    pointers = outputs.pointers("late")
    with pytest.raises(NotPublished):
        pointers.set("dataset", artefact)
    assert not claim(outputs, pointers, "gone")
    assert list(pointers.items()) == []


def test_nothing_is_claimed_while_folders_are_moved(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(outputs, "a")
    move, seen = collect._to_trash, []

    def watched(folder: Path) -> Path:
        with pytest.raises(Busy):
            FileLock(outputs.root / "artefacts" / ".collect.lock", shared=True)
        seen.append(folder)
        return move(folder)

    monkeypatch.setattr(collect, "_to_trash", watched)
    collect.collect(outputs, NOW)
    assert len(seen) == 1
    with outputs.keeping(), outputs.keeping(), pytest.raises(Busy):
        FileLock(outputs.root / "artefacts" / ".collect.lock")


CALLS = ("open", "mkdir", "fsync", "rename", "unlink", "rmdir", "ftruncate", "link", "replace")


def killed_at(die_at: int, outputs: Outputs) -> bool:
    """Collect in a child that is killed before its `die_at`-th call that changes the disk; False if it ended before."""

    def work() -> None:
        count = 0

        def lethal(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counted

        for name in CALLS:
            setattr(os, name, lethal(getattr(os, name)))
        collect.collect(outputs, NOW)

    code = in_child(work)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_kill_at_any_step_leaves_nothing_half_read_and_the_next_collection_heals(tmp_path: Path) -> None:
    first = Outputs(tmp_path / "first")
    kept = publish(first, "kept", ["source"])
    publish(first, "source", stage="tokens")
    first.pointers("study").set("dataset", kept)
    publish(first, "unused", ["unused source"])
    publish(first, "unused source", stage="tokens")
    with open_draft(first, "given up") as draft:
        draft.write_bytes("half.bin", b"half")
    die_at, died = 0, True
    while died:
        die_at += 1
        outputs = Outputs(tmp_path / str(die_at))
        shutil.copytree(first.root, outputs.root)
        died = killed_at(die_at, outputs)
        for folder in outputs.root.glob("artefacts/[!.]*/[!.]*"):
            # Whatever still has its name is whole, garbage or not.
            assert (folder / "half.bin").exists() or Artefact.open(folder).verify() == []
        collect.collect(outputs, NOW)
        assert left(outputs) == {"kept", "source"}
        assert Artefact.open(outputs.root / outputs.pointers("study")._read()["dataset"]).verify() == []
        shutil.rmtree(outputs.root)
    assert die_at > 30


def test_claims_and_collections_at_the_same_time(outputs: Outputs) -> None:
    """A study that reuses and remakes one artefact while another process collects: its pointer never dangles."""
    pointers = outputs.pointers("study")

    def use() -> None:
        for _ in range(60):
            if not claim(outputs, pointers, "a"):
                with outputs.keeping():
                    pointers.set("dataset", publish(outputs, "a"))
            where = pointers.get("dataset")
            assert where is not None
            assert Artefact.open(outputs.root / where).verify() == []
            write_json_atomic(outputs.study_dir("study") / "current.json", {})

    pid = start_child(use)
    collected, ended = 0, (0, 0)
    while ended == (0, 0):
        collected += len(collect.collect(outputs, NOW).deleted)
        ended = os.waitpid(pid, os.WNOHANG)
    assert ended[1] == 0
    assert collected > 0


def test_the_holder_of_a_lock_is_told_without_taking_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert holder(path) is None
    with FileLock(path):
        assert holder(path) == os.getpid()
        os.utime(path, (1, 1))
        assert holder(path) is None, "the process began after the lock was taken: its number was given out anew"
    assert holder(path) is None
    assert in_child(lambda: (FileLock(path), os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
    assert path.read_bytes() and holder(path) is None
    path.write_text("0")
    assert holder(path) is None


def test_a_lock_whose_folder_was_moved_away_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, folder = locks._acquire, tmp_path / "draft"
    folder.mkdir()

    def slow(path: Path, flags: int) -> int:
        fd = acquire(path, flags)
        if not (tmp_path / "trash").exists():
            folder.rename(tmp_path / "trash")
            folder.mkdir()
        return fd

    monkeypatch.setattr(locks, "_acquire", slow)
    with FileLock(folder / ".lock"):
        assert (folder / ".lock").read_text() == str(os.getpid())
        with FileLock(tmp_path / "trash" / ".lock"), pytest.raises(Busy):
            acquire(folder / ".lock", 6)


def test_a_draft_is_opened_though_its_old_folder_vanishes(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, folder = locks._acquire, outputs.artefact_dir("dataset", "a", identity("a"))
    vanished = []

    def late(path: Path, flags: int) -> int:
        if not vanished:
            vanished.append(time.time())
            folder.rmdir()
        return acquire(path, flags)

    monkeypatch.setattr(locks, "_acquire", late)
    with open_draft(outputs, "a") as draft:
        draft.write_bytes("x", b"1")
        assert draft.publish({}).verify() == []
    assert vanished
