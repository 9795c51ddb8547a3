"""Damage of every kind, planted in an output folder: found and named, one after the other, while others work there."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_artefact import ROWS_XD, fill

from sae_pipeline.store import Artefact, Damaged, Draft, Outputs, atomic, reread
from sae_pipeline.store.collect import set_aside
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.verify import Verified, made_from, verify

TOKENS, ACTS, OTHER = "1" * 64, "2" * 64, "3" * 64


def publish(outputs: Outputs, stage: str, key: str, identity: str, *made_from: str, sign: float = 1.0) -> Artefact:
    lineage = {"inputs": {str(i): identity for i, identity in enumerate(made_from)}}
    path = outputs.artefact_dir(stage, key, identity)
    with Draft.open(path, stage=stage, key=key, identity=identity, lineage=lineage) as draft:
        acts = draft.array("acts", shape=ROWS_XD.shape, dtype="float16", shard_rows=36, chunk_rows=12)
        for i in range(acts.n_shards):
            acts.write_shard(i, (sign * ROWS_XD[acts.rows(i)]).astype(np.float16), {"seen": [i, identity]})
        fill_rest(draft)
        return draft.publish({"key": key})


def fill_rest(draft: Draft) -> None:
    draft.write_json("statistics.json", {"mean": [0.25, 1.5], "name": draft.key})
    draft.write_json("twin.json", {"mean": [0.25, 1.5], "name": draft.key[::-1]})
    draft.write_bytes("figures/loss.bin", bytes(range(256)))


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    """Tokens, activations made from them, both used by study `one`; another artefact that study `two` uses."""
    outputs = Outputs(tmp_path / "outputs")
    outputs.pointers("one").set("tokens", publish(outputs, "tokens", "words", TOKENS))
    outputs.pointers("one").set("activations/x", publish(outputs, "activations", "x.1.y", ACTS, TOKENS, sign=-1.0))
    outputs.pointers("two").set("activations/x", publish(outputs, "activations", "x.2.y", OTHER, sign=0.5))
    # `one` points at what was made, not at what that was made from
    pointers = json.loads((outputs.root / "one" / "current.json").read_text())
    atomic.write_json_atomic(outputs.root / "one" / "current.json", {"activations/x": pointers["activations/x"]})
    return outputs


@pytest.fixture
def acts(outputs: Outputs) -> Path:
    return outputs.artefact_dir("activations", "x.1.y", ACTS)


def found(verified: Verified) -> set[tuple[str, str]]:
    return {(damage.file, damage.kind) for damage in verified.damage}


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def test_what_is_whole_is_whole(outputs: Outputs) -> None:
    verified = verify(outputs)
    folders = list((outputs.root / "artefacts").glob("*/*"))
    on_disk = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    documents = sum((folder / "artefact.json").stat().st_size for folder in folders)
    assert verified == Verified(3, on_disk - documents, (), (), ())
    assert verify(Outputs(outputs.root / "nowhere")) == Verified(0, 0, (), (), ())


def test_a_flipped_bit_in_any_file_is_found_and_named(outputs: Outputs) -> None:
    files = [path for path in (outputs.root / "artefacts").rglob("*") if path.is_file() and path.name[0] != "."]
    assert len(files) == 3 * (1 + 1 + 1 + 3 + 3 + 3)
    random = np.random.default_rng(5)
    for trial in range(3 * len(files)):
        file = files[trial % len(files)]
        position, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flip(file, position, bit)
        damage = verify(outputs).damage
        assert [item.path for item in damage] == [file], (file, position, bit)
        assert damage[0].artefact == next(path for path in file.parents if (path / "artefact.json").exists())
        assert damage[0].kind in ("changed", "cut short") and (damage[0].shard is not None) == bool(
            {"c", "commits"} & set(file.relative_to(damage[0].artefact).parts)
        )
        flip(file, position, bit)
    assert verify(outputs).damage == ()


DEEDS: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]], str]] = {
    "shard missing": (lambda a: (a / "acts/c/1/0").unlink(), {("acts/c/1/0", "missing")}, "not there"),
    "shard and its folder missing": (
        lambda a: shutil.rmtree(a / "acts/c/1"),
        {("acts/c/1/0", "missing")},
        "not there",
    ),
    "shard emptied": (lambda a: cut(a / "acts/c/1/0", 0), {("acts/c/1/0", "cut short")}, "has 0 bytes"),
    "shard cut": (lambda a: cut(a / "acts/c/1/0", -1), {("acts/c/1/0", "cut short")}, "were committed"),
    "shard longer": (
        lambda a: (a / "acts/c/1/0").write_bytes((a / "acts/c/1/0").read_bytes() + b"\0"),
        {("acts/c/1/0", "changed")},
        "were committed",
    ),
    "two chunks changed": (
        lambda a: [flip(a / "acts/c/0/0", position, 2) for position in (7, 12 * 6 * 2 + 4 + 9)],
        {("acts/c/0/0", "changed")},
        "2 of its 3 chunks are not as committed, the first is 0",
    ),
    "index changed": (lambda a: flip(a / "acts/c/0/0", -9, 0), {("acts/c/0/0", "changed")}, "index"),
    "shards exchanged": (
        lambda a: swap(a / "acts/c/0/0", a / "acts/c/1/0"),
        {("acts/c/0/0", "exchanged"), ("acts/c/1/0", "exchanged")},
        "holds shard 1 of this array",
    ),
    "shard exchanged with the shorter last": (
        lambda a: swap(a / "acts/c/0/0", a / "acts/c/2/0"),
        {("acts/c/0/0", "exchanged"), ("acts/c/2/0", "exchanged")},
        "holds shard 2 of this array",
    ),
    "shard of another artefact": (
        lambda a: shutil.copy(a.parent / f"x.2.y-{OTHER[:12]}" / "acts/c/0/0", a / "acts/c/0/0"),
        {("acts/c/0/0", "exchanged")},
        "holds rows of another array",
    ),
    "record missing": (
        lambda a: (a / "commits/acts/2.json").unlink(),
        {("commits/acts/2.json", "missing")},
        "not there",
    ),
    "record cut": (lambda a: cut(a / "commits/acts/2.json", 40), {("commits/acts/2.json", "cut short")}, "has 40"),
    "records exchanged": (
        lambda a: swap(a / "commits/acts/0.json", a / "commits/acts/1.json"),
        {("commits/acts/0.json", "exchanged"), ("commits/acts/1.json", "exchanged")},
        "is the record of shard 1, not of 0",
    ),
    "shards and records exchanged": (
        lambda a: [swap(a / f"{x}0{y}", a / f"{x}1{y}") for x, y in (("acts/c/", "/0"), ("commits/acts/", ".json"))],
        {("commits/acts/0.json", "exchanged"), ("commits/acts/1.json", "exchanged")},
        "is the record of shard 1",
    ),
    "record of another artefact": (
        lambda a: shutil.copy(a.parent / f"x.2.y-{OTHER[:12]}" / "commits/acts/0.json", a / "commits/acts/0.json"),
        {("commits/acts/0.json", "changed")},
        "is not the record that was published",
    ),
    "file missing": (lambda a: (a / "statistics.json").unlink(), {("statistics.json", "missing")}, "not there"),
    "file cut": (lambda a: cut(a / "figures/loss.bin", 255), {("figures/loss.bin", "cut short")}, "has 255 bytes"),
    "files exchanged": (
        lambda a: swap(a / "statistics.json", a / "twin.json"),
        {("statistics.json", "exchanged"), ("twin.json", "exchanged")},
        "holds what was published as",
    ),
    "document cut": (lambda a: cut(a / "artefact.json", -9), {("artefact.json", "cut short")}, "checksum"),
    "metadata of an array missing": (
        lambda a: (a / "acts/zarr.json").unlink(),
        {("acts/zarr.json", "missing")},
        "not there",
    ),
    "foreign file": (lambda a: (a / "notes.txt").write_text("mine"), {("notes.txt", "foreign")}, "not published"),
    "foreign shard": (
        lambda a: shutil.copytree(a / "acts/c/0", a / "acts/c/3"),
        {("acts/c/3/0", "foreign")},
        "not published",
    ),
    "foreign record": (
        lambda a: shutil.copy(a / "commits/acts/0.json", a / "commits/acts/3.json"),
        {("commits/acts/3.json", "foreign")},
        "not published",
    ),
    "foreign repair record": (
        lambda a: ((a / "repairs/more").mkdir(parents=True), (a / "repairs/more/0.json").write_text("{}")),
        {("repairs/more/0.json", "foreign")},
        "not published",
    ),
    "repair record that is none": (
        lambda a: ((a / "repairs/acts").mkdir(parents=True), (a / "repairs/acts/1.json").write_text("{}")),
        {("repairs/acts/1.json", "changed")},
        "checksum",
    ),
    "foreign link": (lambda a: (a / "more").symlink_to(a.parent), {("more", "foreign")}, "not published"),
    "a folder in the place of a file": (
        lambda a: ((a / "twin.json").unlink(), (a / "twin.json").mkdir()),
        {("twin.json", "unreadable")},
        "cannot be read",
    ),
    "what is hidden is nobody's": (lambda a: (a / ".statistics.json.0.tmp").write_text("x"), set(), ""),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_each_kind_of_damage_is_named(outputs: Outputs, acts: Path, deed: str) -> None:
    do, expected, cause = DEEDS[deed]
    do(acts)
    verified = verify(outputs)
    assert found(verified) == expected
    assert {damage.artefact for damage in verified.damage} <= {acts}
    assert any(cause in damage.cause for damage in verified.damage) or not expected
    assert verified.artefacts == 3


def test_it_goes_on_after_the_first_and_tells_at_once(outputs: Outputs, acts: Path) -> None:
    tokens, other = outputs.artefact_dir("tokens", "words", TOKENS), outputs.artefact_dir("activations", "x.2.y", OTHER)
    flip(tokens / "artefact.json", 300, 1)
    (acts / "acts/c/0/0").unlink()
    cut(acts / "acts/c/2/0", 50)
    flip(acts / "commits/acts/2.json", 100, 0)
    flip(other / "figures" / "loss.bin", 0, 0)
    told: list[Path] = []
    verified = verify(outputs, found=lambda damage: told.append(damage.path))
    assert told == [damage.path for damage in verified.damage]
    assert {path.relative_to(outputs.root / "artefacts").as_posix() for path in told} == {
        "tokens/words-111111111111/artefact.json",
        "activations/x.1.y-222222222222/acts/c/0/0",
        "activations/x.1.y-222222222222/acts/c/2/0",
        "activations/x.1.y-222222222222/commits/acts/2.json",
        "activations/x.2.y-333333333333/figures/loss.bin",
    }


def test_a_study_is_what_it_points_at_and_what_that_was_made_from(outputs: Outputs) -> None:
    assert verify(outputs, "one").artefacts == 2
    assert verify(outputs, "two").artefacts == 1
    flip(outputs.artefact_dir("tokens", "words", TOKENS) / "twin.json", 3, 3)
    assert found(verify(outputs, "one")) == {("twin.json", "changed")}
    assert found(verify(outputs, "two")) == set()
    acts = outputs.artefact_dir("activations", "x.1.y", ACTS)
    flip(acts / "artefact.json", 200, 3)  # what it was made from, its draft.json still tells
    assert found(verify(outputs, "one")) == {("twin.json", "changed"), ("artefact.json", "changed")}
    assert made_from(outputs, outputs.artefact_dir("tokens", "words", TOKENS)) == [acts]


def test_pointers_to_nothing_and_broken_pointers_are_damage(outputs: Outputs, acts: Path) -> None:
    (acts / "artefact.json").unlink()
    for study in (None, "one"):
        (damage,) = verify(outputs, study).damage
        assert (damage.path, damage.kind) == (acts / "artefact.json", "missing")
        assert "activations/x of study one points to it" in damage.cause
    current = outputs.root / "two" / "current.json"
    cut(current, -3)
    assert (current, "changed") in {(damage.path, damage.kind) for damage in verify(outputs).damage}
    assert found(verify(outputs, "two")) == {("current.json", "changed")}
    current.write_text('{"format": 99}')
    verified = verify(outputs, "two")
    assert verified.damage == () and "upgrade sae-pipeline" in verified.notes[0]


def test_what_a_later_version_made_is_not_judged(outputs: Outputs, acts: Path) -> None:
    document = atomic.unseal(acts, (acts / "artefact.json").read_bytes())
    (acts / "artefact.json").write_bytes(atomic.seal({**document, "format": 99}))
    verified = verify(outputs)
    assert verified.damage == () and verified.artefacts == 2 and "format 99" in verified.notes[0]


class Meanwhile:
    """Progress that lets somebody else act at the first report from within an artefact."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.reports = act, list[tuple[float, float]]()

    def update(self, done: float, total: float, unit: str, **info: object) -> None:
        assert unit == "B"
        if not self.reports:
            self.act()
        self.reports.append((done, total))


def test_what_is_collected_or_published_meanwhile_is_no_damage(outputs: Outputs, acts: Path) -> None:
    other = outputs.artefact_dir("activations", "x.2.y", OTHER)

    def act() -> None:
        for folder in (acts, other):  # the one being read, and one to come
            shutil.rmtree(set_aside(outputs, folder))
        publish(outputs, "activations", "x.3.y", "4" * 64)
        publish(outputs, "activations", "x.2.y", OTHER)  # made again in the same place

    progress = Meanwhile(act)
    verified = verify(outputs, progress=progress)
    assert verified.damage == ()
    assert verified.notes == (f"not read: {acts} was collected meanwhile",)
    assert verified.artefacts == 2
    assert progress.reports[-1][0] == progress.reports[-1][1]
    assert all(a[0] <= b[0] for a, b in zip(progress.reports, progress.reports[1:], strict=False))


def test_a_shard_that_is_repaired_while_it_is_read_is_no_damage(
    outputs: Outputs, acts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, torn = reread.read_index, [True]

    def read_index(file: object, path: Path, n_chunks: int) -> object:
        if torn.pop() if torn else False:
            raise Damaged(path, "half of one, half of the other")
        return read(file, path, n_chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(reread, "read_index", read_index)
    assert verify(outputs).damage == () and not torn


def test_nobody_is_held_up_and_nobody_holds_it_up(outputs: Outputs, acts: Path) -> None:
    before = {path: path.read_bytes() for path in outputs.root.rglob("*") if path.is_file()}
    with FileLock(acts / ".lock"), outputs.collecting():
        assert verify(outputs).damage == ()
    held = {path: path.read_bytes() for path in before}
    assert {**held, acts / ".lock": b""} == {**before, acts / ".lock": b""}


def test_memory_is_bounded_however_large_a_chunk_is(tmp_path: Path) -> None:
    n_bytes = 48 << 20
    path = tmp_path / "artefacts" / "tokens" / "large-000000000000"
    with Draft.open(path, stage="tokens", key="large", identity="0" * 64, lineage={}) as draft:
        array = draft.array("x", shape=(n_bytes,), dtype="uint8", shard_rows=n_bytes, chunk_rows=n_bytes)
        array.write_shard(0, np.zeros(n_bytes, np.uint8))
        draft.write_bytes("y.bin", bytes(n_bytes))
        draft.publish({})
    flip(array.shard_path(0), n_bytes - 3, 1)
    tracemalloc.start()
    try:
        verified = verify(Outputs(tmp_path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found(verified) == {("x/c/0", "changed")}
    assert peak_bytes < 32 << 20


def test_a_file_that_the_disk_does_not_give_is_named(
    outputs: Outputs, acts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = os.preadv, (acts / "acts/c/1/0").stat().st_ino

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(fd).st_ino == bad:
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    verified = verify(outputs)
    assert found(verified) == {("acts/c/1/0", "unreadable")}
    assert verified.damage[0].shard == ("acts", 1)


def test_small_artefacts_of_other_tests_are_whole(tmp_path: Path) -> None:
    """Arrays of one dimension and shards in one chunk too."""
    path = tmp_path / "artefacts" / "activations" / "code-0f0f0f0f0f0f"
    with Draft.open(path, stage="activations", key="code", identity="0f" * 32, lineage={}) as draft:
        fill(draft)
        draft.publish({})
    assert verify(Outputs(tmp_path)).damage == ()
    swap(path / "index/c/0", path / "index/c/1")
    assert found(verify(Outputs(tmp_path))) == {("index/c/0", "exchanged"), ("index/c/1", "exchanged")}
