"""Damaged shards made again: every bit as it was, or close to it and marked; whole at whatever moment a repair dies."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_doubles import POST, MemoryTokens, config_of, make_contexts, make_tokens

from sae_pipeline.activations import Earlier, Moments, audit_frame, harvest, summarise_shards, taken_over
from sae_pipeline.activations.closeness import Closeness, closeness, rounding_tolerance
from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.remaking import Recipe
from sae_pipeline.activations.repair import Repaired, repair_shards
from sae_pipeline.store import Artefact, Busy, Damaged, Draft, Outputs, ShardedArray, array_format
from sae_pipeline.store.garbage import Policy, survey
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.repairs import repair_path
from sae_pipeline.store.verify import verify
from sae_pipeline.subjects import Subject

OLD, NEW = "a" * 64, "b" * 64


@dataclass
class Place:
    """An output folder, and what its activations are made from."""

    outputs: Outputs
    subject: Subject
    tokens: Any
    ran: list[int]  # contexts of every pass

    def publish(self, identity: str = OLD, **options: Any) -> Artefact:
        config = {"dtype": "float32", "site": "post"}
        lineage = {"stage": "activations", "version": 1, "config": config, "inputs": {"tokens": identity}}
        path = self.outputs.artefact_dir("activations", str(POST), identity)
        earlier = options.pop("earlier", None)
        with Draft.open(path, stage="activations", key=str(POST), identity=identity, lineage=lineage) as draft:
            made_from = {POST: earlier} if earlier else None
            harvest(self.subject, self.tokens, {POST: draft}, config_of(**options), earlier=made_from)
            return draft.publish(summarise_shards(draft))

    def repair(self, artefact: Artefact, *shards: int, **options: Any) -> list[Repaired]:
        tolerance = options.pop("tolerance", None)
        recipe = Recipe(self.subject, self.tokens, config_of(**options), "float32")
        self.ran.clear()
        return list(
            repair_shards(self.outputs, Artefact.open(artefact.path), shards, lambda: recipe, tolerance=tolerance)
        )


@pytest.fixture
def place(subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(array_format, "MAX_CHUNK_ROWS", 16)
    ran, run = list[int](), subject.run
    monkeypatch.setattr(subject, "run", lambda ids_cl, sites: ran.append(len(ids_cl)) or run(ids_cl, sites))
    return Place(Outputs(tmp_path / "outputs"), subject, tokens, ran)


@contextlib.contextmanager
def elsewhere(subject: Subject, factor: float) -> Iterator[None]:
    """On another machine the model computes something slightly else."""
    weight = next(
        parameter for name, parameter in subject._model.named_parameters() if name.endswith("mlp.c_proj.weight")
    )
    before = weight.data.clone()
    weight.data *= 1 + factor
    try:
        yield
    finally:
        weight.data = before


def flip(path: Path, position: int, bit: int = 3) -> None:
    """In place, as a disk does it: under every name that the file has."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def damaged(place: Place) -> list[str]:
    return [damage.file for damage in verify(place.outputs).damage]


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


DEEDS: dict[str, Callable[[ShardedArray], object]] = {
    "a flipped bit": lambda array: flip(array.shard_path(1), 1000),
    "no end": lambda array: array.shard_path(1).write_bytes(array.shard_path(1).read_bytes()[:700]),
    "nothing there": lambda array: (array.shard_path(1).unlink(), array.shard_path(1).parent.rmdir()),
    "a record changed": lambda array: flip(array.commit_path(1), 300),
    "a record missing": lambda array: array.commit_path(1).unlink(),
    "both": lambda array: (array.commit_path(1).unlink(), flip(array.shard_path(1), 0)),
    "a repair record of nothing": lambda array: (
        repair_path(array.shard_path(0).parents[3], "acts", 1).parent.mkdir(parents=True),
        repair_path(array.shard_path(0).parents[3], "acts", 1).write_text("{"),
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_every_bit_is_as_it_was(place: Place, deed: str) -> None:
    artefact = place.publish()
    before = contents(artefact.path)
    DEEDS[deed](artefact.array("acts"))
    assert damaged(place)
    assert place.repair(artefact, 1) == [Repaired(1, "put back", "made again, every bit is the same")]
    assert contents(artefact.path) == before
    assert damaged(place) == [] and len(place.ran) < 6
    assert sorted(path.name for path in artefact.path.parent.iterdir()) == [".trash", artefact.path.name]
    assert list((artefact.path.parent / ".trash").iterdir()) == []
    assert place.repair(artefact, 1) == [Repaired(1, "whole", "repaired meanwhile")] and place.ran == []


def test_exchanged_shards_and_the_short_last_one_are_put_back(place: Place) -> None:
    artefact = place.publish()
    before, array = contents(artefact.path), artefact.array("acts")
    last = array.n_shards - 1
    assert array.rows(last).stop - array.rows(last).start < array.shard_rows
    swap(array.shard_path(0), array.shard_path(2))
    array.shard_path(last).unlink()
    assert [done.how for done in place.repair(artefact, 0, 2, last)] == ["put back"] * 3
    assert contents(artefact.path) == before


def test_it_is_made_in_the_micro_batches_of_then(place: Place) -> None:
    artefact = place.publish(micro_batch=5)
    flip(artefact.array("acts").shard_path(1), 0)
    assert place.repair(artefact, 1, micro_batch=3)[0].how == "put back"
    assert place.ran[0] == 5 and max(place.ran) == 5


def test_other_bits_within_tolerance_are_taken_and_marked(place: Place) -> None:
    artefact = place.publish()
    array = artefact.array("acts")
    lost_rd, commit = array.read_shard(1), array.commit_path(1).read_bytes()
    others = {name: data for name, data in contents(artefact.path).items() if "/1/" not in name}
    flip(array.shard_path(1), 10)
    with elsewhere(place.subject, 1e-6):
        (done,) = place.repair(artefact, 1)
    assert done.how == "remade" and "over 3 whole chunks" in done.says
    again = Artefact.open(artefact.path)
    x_rd = again.array("acts").read_shard(1)
    assert 0 < np.abs(x_rd - lost_rd).max() < 1e-4
    record = again.array("acts").repair(1)
    assert record is not None
    rms_d = np.sqrt(np.mean(lost_rd.astype(np.float64) ** 2, axis=0))
    difference_rd = np.abs(x_rd.astype(np.float64) - lost_rd) / (np.abs(lost_rd) + rms_d)
    assert record["chunks_compared"] == 3  # the first was hit
    assert record["max_difference"] == pytest.approx(difference_rd[array.chunk_rows :].max(), rel=1e-6)
    assert 0 < record["moments_difference"] < record["tolerance"] == rounding_tolerance("float32", "float32")
    assert array.commit_path(1).read_bytes() == commit
    verified = verify(place.outputs)
    assert verified.damage == ()
    assert [(remade.artefact, remade.array, remade.shard) for remade in verified.remade] == [(again.path, "acts", 1)]
    assert audit_frame(again)["remade"].tolist() == [i == 1 for i in range(array.n_shards)]
    assert (audit_frame(again)["damage"] == "").all()
    assert {name: data for name, data in contents(artefact.path).items() if "/1/" not in name} == others | {
        "repairs/acts/1.json": repair_path(again.path, "acts", 1).read_bytes()
    }


def remade(place: Place, artefact: Artefact, factor: float = 1e-6) -> Artefact:
    flip(artefact.array("acts").shard_path(1), 10)
    with elsewhere(place.subject, factor):
        assert place.repair(artefact, 1)[0].how == "remade"
    return Artefact.open(artefact.path)


def test_a_remade_shard_is_guarded_like_any_other(place: Place) -> None:
    artefact = remade(place, place.publish())
    files = [artefact.array("acts").shard_path(1), repair_path(artefact.path, "acts", 1)]
    random = np.random.default_rng(1)
    for trial in range(40):
        file = files[trial % 2]
        position, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flip(file, position, bit)
        assert damaged(place) == [str(file.relative_to(artefact.path))]
        with pytest.raises(Damaged, match=file.name):
            Artefact.open(artefact.path).array("acts").read_shard(1)
        flip(file, position, bit)
    records = [repair_path(artefact.path, "acts", i) for i in (1, 2)]
    records[1].write_bytes(records[0].read_bytes())
    assert damaged(place) == ["repairs/acts/2.json"]


def test_what_was_remade_is_put_back_where_the_bits_can_be_had(place: Place) -> None:
    artefact = place.publish()
    before = contents(artefact.path)
    remade(place, artefact)
    flip(artefact.array("acts").shard_path(1), 500)
    assert place.repair(artefact, 1)[0].how == "put back"
    assert contents(artefact.path) == before


def test_what_was_remade_is_remade_again(place: Place) -> None:
    artefact = remade(place, place.publish())
    first = artefact.array("acts").repair(1)
    flip(repair_path(artefact.path, "acts", 1), 200)
    with elsewhere(place.subject, 1e-6):
        assert place.repair(artefact, 1)[0].how == "remade"
    assert first is not None
    found = Artefact.open(artefact.path).array("acts").repair(1)
    assert found is not None and found["chunk_crc32c"] == first["chunk_crc32c"]
    assert damaged(place) == []


@pytest.mark.parametrize("deed", ["a flipped bit", "nothing there", "no end"])
def test_what_is_too_far_away_is_refused_and_nothing_changed(place: Place, deed: str) -> None:
    artefact = place.publish()
    DEEDS[deed](artefact.array("acts"))
    before = contents(artefact.path)
    with elsewhere(place.subject, 0.01):
        (done,) = place.repair(artefact, 1)
        assert done.how == "refused" and "differ by up to 0.0" in done.says and "accepted are 0.0001" in done.says
        assert contents(artefact.path) == before
        assert place.repair(artefact, 1, tolerance=0.5)[0].how == "remade"
    assert damaged(place) == []


def test_without_its_record_only_the_same_bits_will_do(place: Place) -> None:
    artefact = place.publish()
    artefact.array("acts").commit_path(1).unlink()
    before = contents(artefact.path)
    with elsewhere(place.subject, 1e-6):
        (done,) = place.repair(artefact, 1)
    assert done == Repaired(1, "refused", "its commit record is lost, and the one made again is another")
    assert contents(artefact.path) == before


def shared(place: Place) -> tuple[Artefact, Artefact]:
    """Two versions of the activations; the later took its first shards over from the earlier, as links."""
    old, then = place.publish(OLD), place.tokens
    more = make_contexts(20, 9)
    parts = ((getattr(then.train, name), getattr(more, name)) for name in ("ids_nl", "lengths", "mask_nl"))
    document = np.concatenate([then.train.document, more.document + 1000])
    place.tokens = Grown(
        replace(
            then.train,
            **dict(zip(("ids_nl", "lengths", "mask_nl"), map(np.concatenate, parts), strict=True)),
            document=document,
        ),
        then.held_out,
        then.train.n_rows,
    )
    new = place.publish(NEW, earlier=Earlier(old, then))
    one, other = (artefact.array("acts").shard_path(1) for artefact in (old, new))
    assert os.path.samefile(one, other)
    return old, new


@dataclass
class Grown(MemoryTokens):
    sized_by: int = 0

    @property
    def sized_by_rows(self) -> int:
        return self.sized_by


def test_both_names_of_a_shared_file_are_repaired(place: Place, tmp_path: Path) -> None:
    old, new = shared(place)
    before = contents(place.outputs.root)
    one, other = (artefact.array("acts").shard_path(1) for artefact in (old, new))
    flip(one, 64)
    spoilt = one.read_bytes()
    os.link(one, tmp_path / "third")
    assert damaged(place) == ["acts/c/1/0", "acts/c/1/0"]
    assert place.repair(new, 1) == [Repaired(1, "put back", "made again, every bit is the same", (old.path,))]
    assert contents(place.outputs.root) == before
    assert os.path.samefile(one, other)
    assert (tmp_path / "third").read_bytes() == spoilt  # nothing was written in place


def test_both_are_remade_alike(place: Place) -> None:
    old, new = shared(place)
    flip(old.array("acts").shard_path(1), 64)
    with elsewhere(place.subject, 1e-6):
        (done,) = place.repair(new, 1)
    assert (done.how, done.also) == ("remade", (old.path,))
    assert damaged(place) == []
    rows = [Artefact.open(artefact.path).array("acts").read_shard(1) for artefact in (old, new)]
    np.testing.assert_array_equal(*rows)
    assert len(verify(place.outputs).remade) == 2


def test_a_whole_copy_is_taken_before_the_model_is_run(place: Place) -> None:
    _, new = shared(place)
    before = contents(place.outputs.root)
    new.array("acts").shard_path(1).unlink()
    new.array("acts").commit_path(1).unlink()
    assert place.repair(new, 1) == [Repaired(1, "put back", "from another artefact")]
    assert place.ran == [] and contents(place.outputs.root) == before


def test_a_remade_shard_is_no_copy_to_take(place: Place) -> None:
    old, new = shared(place)
    remade(place, new)  # and `old` with it: they share the file
    old.array("acts").shard_path(1).unlink()
    flip(new.array("acts").shard_path(1), 3)
    (done,) = place.repair(new, 1)
    assert done.says == "made again, every bit is the same" and place.ran
    assert verify(place.outputs).damage == verify(place.outputs).remade == ()


def test_a_remade_shard_is_not_taken_over(place: Place) -> None:
    old, new = shared(place)
    remade(place, new)
    shutil.rmtree(new.path)
    again = place.publish(NEW, earlier=Earlier(Artefact.open(old.path), make_tokens()))
    taken = taken_over(again)[OLD]
    assert 0 in taken and 2 in taken and 1 not in taken
    assert verify(place.outputs).damage == () and again.array("acts").repair(1) is None


def test_bytes_are_durable_before_they_take_their_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = place.publish()
    path, record = artefact.array("acts").shard_path(1), repair_path(artefact.path, "acts", 1)
    flip(path, 3)
    events, fsync, rename = list[tuple[str, str]](), os.fsync, os.replace

    def synced(fd: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def renamed(source: Path, target: Path) -> None:
        events.extend([("from", str(source)), ("to", str(target))])
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with elsewhere(place.subject, 1e-6):
        assert place.repair(artefact, 1)[0].how == "remade"
    begun = events.index(("to", str(record)))
    ended = events.index(("to", str(path)))
    assert ("sync", str(record.parent)) in events[begun:ended]
    source = events[ended - 1][1]
    assert events.index(("sync", source)) < ended
    assert ("sync", str(path.parent)) in events[ended:]


def test_what_was_made_from_something_else_is_refused(place: Place) -> None:
    artefact = place.publish()
    flip(artefact.array("acts").shard_path(1), 3)
    before = contents(artefact.path)
    with pytest.raises(ActivationError, match="would be"):
        place.repair(artefact, 1, dtype="float16")
    place.tokens = make_tokens(50)
    with pytest.raises(ActivationError, match="other tokens"):
        place.repair(artefact, 1)
    assert contents(artefact.path) == before


def test_who_is_at_work_is_not_disturbed(place: Place) -> None:
    artefact = place.publish()
    flip(artefact.array("acts").shard_path(1), 3)
    with FileLock(artefact.path / ".lock"), pytest.raises(Busy):
        place.repair(artefact, 1)
    assert damaged(place) == ["acts/c/1/0"]
    garbage = survey(place.outputs, Policy(older_than_s=0.0, wanted=[OLD])).garbage
    assert any("repair-" in item.path.name and item.kind == "draft" for item in garbage)  # of the attempt
    assert place.repair(artefact, 1)[0].how == "put back" and place.ran == []  # it had been made then


class Killed(BaseException):
    pass


class Machine:
    """Dies at one of the calls that change the disk; from then on none goes through, cleanups neither."""

    CALLS = ("open", "fsync", "link", "replace", "unlink", "rename", "mkdir")

    def __init__(self, die_at: int) -> None:
        self.die_at, self.count = die_at, 0

    @contextlib.contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in self.CALLS:
                patch.setattr(os, name, self.call(getattr(os, name)))
            yield

    def call(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if real.__name__ == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.count += 1
            if self.count > self.die_at:
                raise Killed
            return real(*arguments, **options)

        return wrapped


@pytest.mark.parametrize("factor", [0.0, 1e-6], ids=["put back", "remade"])
def test_a_death_at_any_call_leaves_it_damaged_or_repaired(
    place: Place, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    old, new = shared(place)
    spoil = [artefact.array("acts").shard_path(1) for artefact in (old, new)]
    whole, seen, die_at = contents(place.outputs.root), set[tuple[int, int]](), int(factor > 0)
    while True:
        _reset(place.outputs.root, whole, spoil)
        machine = Machine(die_at)
        with elsewhere(place.subject, factor):
            with machine.running(monkeypatch), contextlib.suppress(Killed):
                place.repair(new, 1)
            verified = verify(place.outputs)
            assert {damage.shard for damage in verified.damage} <= {("acts", 1)}
            for artefact in (old, new):
                if artefact.path not in {damage.artefact for damage in verified.damage}:
                    assert Artefact.open(artefact.path).array("acts").read_shard(1).shape
            seen.add((len({damage.artefact for damage in verified.damage}), len(verified.remade)))
            if machine.count <= machine.die_at:
                break
            how = {"put back", "whole"} if not factor else {"remade", "whole"}
            assert {done.how for done in place.repair(new, 1)} <= how
        assert damaged(place) == []
        die_at += 2  # the two ways to repair take every second call each
    assert {count for count, _ in seen} == {0, 1, 2} and die_at > 40


def _reset(root: Path, whole: dict[str, bytes], spoil: list[Path]) -> None:
    for path in [path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in whole]:
        path.unlink()
    for name, data in whole.items():
        if (root / name).read_bytes() != data:
            (root / name).write_bytes(data)
    spoil[0].unlink()
    os.link(spoil[1], spoil[0])
    flip(spoil[0], 64)


def test_closeness_is_what_it_says(place: Place) -> None:
    artefact = place.publish()
    array = artefact.array("acts")
    x_rd, record = array.read_shard(1), array.commit(1)
    assert closeness(array, 1, [record], x_rd) == Closeness(0.0, -(-len(x_rd) // array.chunk_rows), 0.0)
    y_rd = x_rd.copy()
    y_rd[3, 5] += 0.5
    rms = float(np.sqrt((x_rd[:, 5].astype(np.float64) ** 2).mean()))
    found = closeness(array, 1, [record], y_rd)
    assert found.values == pytest.approx(0.5 / (abs(float(x_rd[3, 5])) + rms), rel=1e-5)
    lost, made = Moments.of(torch.from_numpy(x_rd)), Moments.of(torch.from_numpy(y_rd))
    spread = [np.sqrt(each.m2[5] / each.count) for each in (lost, made)]
    expected = max(abs(made.mean[5] - lost.mean[5]), abs(spread[1] - spread[0])) / rms
    assert found.moments == pytest.approx(expected, rel=1e-5)
    assert found.within(found.values) and not found.within(0.99 * found.values)
    y_rd[0, 0] = np.nan
    assert closeness(array, 1, [record], y_rd).values == closeness(array, 1, [record], y_rd).moments == np.inf
    assert not closeness(array, 1, [record], y_rd).within(1e9)


def test_what_rounding_explains_grows_with_it() -> None:
    assert rounding_tolerance("float32", "float32") == pytest.approx(1e-4, rel=0.01)
    assert rounding_tolerance("float16", "float32") == pytest.approx(4 / 1024 + 1e-4)
    assert rounding_tolerance("bfloat16", "bfloat16") == pytest.approx(20 / 128)
