from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_artefact import ROWS_XD, fill, open_draft

from sae_pipeline.store import Artefact, Damaged

Publish = Callable[[], Artefact]


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_single_bit_flips_anywhere_are_found_and_the_file_is_named(publish: Publish) -> None:
    artefact = publish()
    files = sorted(path for path in artefact.path.rglob("*") if path.is_file() and path.name != ".lock")
    assert len(files) == 18  # artefact, draft, 2 zarr.json, 6 shards, 6 records, statistics, figure
    random = np.random.default_rng(0)
    for trial in range(60):
        file = files[trial % len(files)]
        position, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flip(file, position, bit)
        assert file in {damage.path for damage in artefact.verify()}, (file, position, bit)
        with pytest.raises(Damaged, match=file.name):
            reopened = Artefact.open(artefact.path)
            for name in ("acts", "index"):
                reopened.array(name).read(0, 90)
        flip(file, position, bit)
    assert artefact.verify() == []


def test_a_flip_in_the_padding_of_the_last_shard_is_found(publish: Publish) -> None:
    artefact = publish()
    array = artefact.array("acts")  # the last shard holds 18 rows in chunks of 12: 6 rows of padding
    flip(array.shard_path(2), 23 * 12 + 3 + 4, 0)
    assert [damage.path for damage in artefact.verify()] == [array.shard_path(2)]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_shard_is_named(publish: Publish, keep: int) -> None:
    artefact = publish()
    shard = artefact.array("acts").shard_path(1)
    shard.write_bytes(shard.read_bytes()[:keep])
    assert [damage.path for damage in artefact.verify()] == [shard]
    with pytest.raises(Damaged, match=r"acts/c/1/0.*cut short"):
        artefact.array("acts").read(30, 40)


def test_a_missing_shard_never_reads_as_zeros(publish: Publish) -> None:
    artefact = publish()
    array = artefact.array("acts")
    np.testing.assert_array_equal(array.read(0, 90), ROWS_XD)
    array.shard_path(1).unlink()
    for read in (lambda: array.read_shard(1), lambda: array.read(0, 90), lambda: array.read_float32(40, 41)):
        with pytest.raises(Damaged, match="acts/c/1/0: missing"):
            read()
    np.testing.assert_array_equal(array.read(0, 36), ROWS_XD[:36])
    assert [(damage.path, damage.cause[:7]) for damage in artefact.verify()] == [(array.shard_path(1), "missing")]


def test_exchanged_shards_and_records_are_named(publish: Publish) -> None:
    artefact = publish()
    array = artefact.array("acts")
    for path in (array.shard_path, array.commit_path):
        swap(path(0), path(1))
        assert {damage.path for damage in artefact.verify()} == {path(0), path(1)}
        swap(path(0), path(1))
    assert artefact.verify() == []


def test_a_shard_of_another_artefact_with_its_record_is_named(publish: Publish, tmp_path: Path) -> None:
    artefact = publish()
    with open_draft(tmp_path / "other") as draft:
        other = draft.array("acts", shape=ROWS_XD.shape, dtype="float16", shard_rows=36, chunk_rows=12)
        other.write_shard(0, -ROWS_XD[:36])
    array = artefact.array("acts")
    shutil.copy(other.shard_path(0), array.shard_path(0))
    shutil.copy(other.commit_path(0), array.commit_path(0))
    with pytest.raises(Damaged, match="not the record that was published"):
        Artefact.open(artefact.path).array("acts").read(0, 1)


def test_missing_and_changed_files_are_named_when_the_artefact_is_opened(publish: Publish) -> None:
    artefact = publish()
    file = artefact.path / "statistics.json"
    original = file.read_bytes()
    for change, cause in ((original[:-1], "bytes"), (original.replace(b"1.5", b"1.6"), "sha256")):
        file.write_bytes(change)
        with pytest.raises(Damaged, match=f"statistics.json.*{cause}"):
            Artefact.open(artefact.path)
    file.unlink()
    with pytest.raises(Damaged, match=r"statistics.json: missing"):
        Artefact.open(artefact.path)


def test_large_files_are_checked_when_first_asked_for(tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        draft.write_bytes("weights.bin", bytes(2 << 20))
        artefact = draft.publish({})
    assert artefact.file("weights.bin") == tmp_path / "a" / "weights.bin"
    flip(artefact.path / "weights.bin", 1 << 20, 3)
    reopened = Artefact.open(artefact.path)
    with pytest.raises(Damaged, match=r"weights\.bin"):
        reopened.file("weights.bin")
    assert [damage.path.name for damage in artefact.verify()] == ["weights.bin"]


def test_a_draft_is_not_published_over_damage(tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        fill(draft)
        draft.array("acts").shard_path(2).unlink()
        with pytest.raises(Damaged, match="acts/c/2/0: missing"):
            draft.publish({})
        assert not (draft.path / "artefact.json").exists()


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
