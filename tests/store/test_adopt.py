"""A shard of one array committed as another's: linked or copied, never torn, and each array stands alone afterwards."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_artefact import ROWS_XD, open_draft
from test_store_faults import Killed, Machine

from sae_pipeline.store import Artefact, Damaged, Draft, PipelineError, ShardedArray
from sae_pipeline.store.array_format import create_array

MORE_XD = np.concatenate([ROWS_XD, ROWS_XD[:50] + 1])  # 140 rows: two whole shards of ROWS_XD, then others
Publish = Callable[[], Artefact]


def grown(draft: Draft, **changes: Any) -> ShardedArray:
    form = {"shape": MORE_XD.shape, "dtype": "float16", "shard_rows": 36, "chunk_rows": 12} | changes
    return draft.array("acts", **form)


def finish(draft: Draft, source: ShardedArray) -> Artefact:
    array = grown(draft)
    for i in range(array.n_shards):
        if i < 2:
            array.adopt(i, source)
        else:
            array.write_shard(i, MORE_XD[array.rows(i)])
    return draft.publish({})


def file_of(path: Path) -> tuple[int, bytes]:
    return path.stat().st_ino, path.read_bytes()


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that makes no second name for a shard, as between two disks."""
    link = os.link

    def refused(source: Any, target: Any) -> None:
        if Path(target).name != "0":
            return link(source, target)
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("linked", [True, False])
def test_an_adopted_shard_is_the_others_and_outlives_it(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    old = publish()
    source = old.array("acts")
    if not linked:
        no_links(monkeypatch)
    with open_draft(tmp_path / "new") as draft:
        array = grown(draft)
        assert array.adopt(0, source)
        assert not array.adopt(0, source)
        new = finish(draft, source)
    array = new.array("acts")
    for i in range(2):
        mine, other = file_of(array.shard_path(i)), file_of(source.shard_path(i))
        assert mine[1] == other[1] and (mine[0] == other[0]) == linked
        assert array.commit_path(i).read_bytes() == source.commit_path(i).read_bytes()
    shutil.rmtree(old.path)
    assert new.verify() == []
    np.testing.assert_array_equal(Artefact.open(new.path).array("acts").read(0, 140), MORE_XD)


def _flip(source: ShardedArray) -> None:
    data = bytearray(source.shard_path(0).read_bytes())
    data[100] ^= 1  # in the rows: the checksums in the file still agree with the record
    source.shard_path(0).write_bytes(bytes(data))


def _exchange(source: ShardedArray) -> None:
    source.shard_path(0).write_bytes(source.shard_path(1).read_bytes())


DAMAGE: dict[str, Callable[[ShardedArray], None]] = {
    "a flipped bit": _flip,
    "cut short": lambda source: os.truncate(source.shard_path(0), 300),
    "exchanged": _exchange,
    "gone": lambda source: source.shard_path(0).unlink(),
    "its record gone": lambda source: source.commit_path(0).unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_not_adopted(publish: Publish, tmp_path: Path, kind: str) -> None:
    source = publish().array("acts")
    DAMAGE[kind](source)
    with open_draft(tmp_path / "new") as draft:
        array = grown(draft)
        with pytest.raises(Damaged):
            array.adopt(0, source)
        assert not array.is_committed(0)
        assert array.write_shard(0, MORE_XD[array.rows(0)])
        np.testing.assert_array_equal(array.read_shard(0), MORE_XD[:36])


def test_a_copy_that_is_not_the_shard_does_not_count(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = publish().array("acts"), shutil.copyfile
    no_links(monkeypatch)
    monkeypatch.setattr(shutil, "copyfile", lambda _, target: copy(source.shard_path(1), target))
    with open_draft(tmp_path / "new") as draft:
        array = grown(draft)
        with pytest.raises(Damaged, match="not the shard it was copied from"):
            array.adopt(0, source)
        assert not array.is_committed(0)


@pytest.mark.parametrize(
    ("i", "changes"),
    [
        (2, {}),  # the last one, shorter there
        (0, {"dtype": "bfloat16"}),
        (0, {"chunk_rows": 9}),
        (0, {"shard_rows": 24}),
        (0, {"shape": (140, 7)}),
        (3, {}),
    ],
)
def test_other_rows_or_another_form_are_refused(
    publish: Publish, tmp_path: Path, i: int, changes: dict[str, Any]
) -> None:
    source = publish().array("acts")
    with open_draft(tmp_path / "new") as draft, pytest.raises(PipelineError, match=r"not the same rows|does not exist"):
        grown(draft, **changes).adopt(i, source)
    with pytest.raises(PipelineError, match="read-only"):
        source.adopt(0, source)


def test_a_shard_under_another_codec_is_refused(publish: Publish, tmp_path: Path) -> None:
    form: dict[str, Any] = {"shape": MORE_XD.shape, "dtype": "float16", "shard_rows": 36, "chunk_rows": 12}
    with open_draft(tmp_path / "new") as draft:
        create_array(draft.path, "acts", **form, codec="zstd")
        with pytest.raises(PipelineError, match=r"'zstd'.*not the same rows"):
            grown(draft).adopt(0, publish().array("acts"))


def test_a_death_at_any_call_harms_neither_array(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = publish().array("acts")
    before = [file_of(source.shard_path(i)) for i in range(2)]

    def attempt(path: Path, machine: Machine) -> None:
        with machine.running(monkeypatch), open_draft(path) as draft:
            for i in range(2):
                grown(draft).adopt(i, source)

    whole = Machine(None)
    attempt(tmp_path / "whole", whole)
    assert whole.count > 30
    left_over = 0
    for die_at in range(whole.count):
        path = tmp_path / str(die_at)
        with pytest.raises(Killed):
            attempt(path, Machine(die_at))
        # What was left may be a name of the source's file: writing there anew must not reach the source.
        with open_draft(path) as draft:
            array = grown(draft)
            left_over += array.shard_path(0).exists() and not array.is_committed(0)
            for i in range(2):
                if die_at % 2:
                    array.adopt(i, source)
                    np.testing.assert_array_equal(array.read_shard(i), MORE_XD[array.rows(i)])
                else:
                    array.write_shard(i, MORE_XD[array.rows(i)] * 2)
        assert [file_of(source.shard_path(i)) for i in range(2)] == before
        source.check_shard(0)
    assert left_over > 3


def test_a_shard_is_durable_before_the_record_that_vouches_for_it(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, machine = publish().array("acts"), Machine(None)
    with machine.running(monkeypatch), open_draft(tmp_path / "new") as draft:
        array = grown(draft)
        array.adopt(0, source)
    record, shard = str(array.commit_path(0)), str(array.shard_path(0))
    at = machine.events.index
    assert at(("link", shard)) < at(("fsync", shard)) < at(("link", record))
    assert at(("fsync", str(array.shard_path(0).parent))) < at(("link", record))
