"""One published artefact read again, byte by byte, and what is wrong with it. Nothing is locked and nothing changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import google_crc32c
import numpy as np

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import CRC_BYTES, ShardSeal, read_index
from sae_pipeline.store.artefact import ARTEFACT, read_document
from sae_pipeline.store.errors import Damaged, NewerFormat, NotPublished, PathError, PipelineError
from sae_pipeline.store.repairs import read_repair, repair_path
from sae_pipeline.store.sharded_array import ShardedArray
from sae_pipeline.store.storage import LOCAL, Ranges

SLAB_BYTES: Final = 8 << 20
"""Most bytes of a file that are in memory at once."""

Kind = Literal["missing", "cut short", "changed", "exchanged", "foreign", "unreadable"]
Shard = tuple[str, int]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """One file that is not as published.

    Attributes:
        artefact: folder of the artefact.
        path: the file.
        kind: in a word; `foreign`: it is there and should not be; `unreadable`: the disk does not give it.
        cause: in a sentence.
        shard: array and number of the shard whose rows it holds or vouches for; None of any other file.
    """

    artefact: Path
    path: Path
    kind: Kind
    cause: str
    shard: Shard | None = None

    @property
    def file(self) -> str:
        """The file's name in the artefact."""
        return self.path.relative_to(self.artefact).as_posix()


@dataclass(frozen=True)
class Remade:
    """A shard that was made again with other bits within tolerance, and its repair record."""

    artefact: Path
    array: str
    shard: int
    record: Entry


class Reread:
    """A published artefact, read from its files alone.

    `advance` is told the bytes read; `remade`, once `damage` has been consumed, holds the shards made again.
    """

    def __init__(self, folder: Path, advance: Callable[[int], None] = lambda n_bytes: None) -> None:
        self.folder, self._advance = folder, advance
        self.remade: list[Remade] = []
        self._known = {folder / ARTEFACT}
        self._unknown: list[Path] = []  # folders of shards whose names cannot be told

    def damage(self) -> Iterator[Damage]:
        """Everything that is wrong, one file at a time; past a broken `artefact.json` nothing can be known.

        Raises:
            NewerFormat: a later version of the pipeline made it.
        """
        documents: list[Entry] = []
        yield from self._try(self.folder / ARTEFACT, lambda: documents.append(read_document(self.folder)))
        for document in documents:
            files: dict[str, Entry] = document["files"]
            names = {entry["sha256"]: name for name, entry in files.items()}
            for name, entry in sorted(files.items()):
                yield from self._try(self.folder / name, partial(self._check_file, name, entry, names))
            for name, listing in sorted(document["arrays"].items()):
                yield from self._array(name, listing)
            yield from self._foreign()

    def _try(self, path: Path, check: Callable[[], object], shard: Shard | None = None) -> Iterator[Damage]:
        self._known.add(path)
        found = self._once(path, check, shard)
        if found is not None and shard is not None:  # it may have been repaired while it was read
            found = self._once(path, check, shard)
        if found is not None:
            yield found

    def _once(self, path: Path, check: Callable[[], object], shard: Shard | None) -> Damage | None:
        try:
            check()
        except _Bad as bad:
            return Damage(self.folder, path, bad.kind, bad.cause, shard)
        except NewerFormat:
            raise
        except (NotPublished, FileNotFoundError, NotADirectoryError):
            return Damage(self.folder, path, "missing", "missing: it was published but is not there", shard)
        except PathError as error:
            kind: Kind = "cut short" if _unfinished(path) else "changed"
            return Damage(self.folder, path, kind, error.cause, shard)
        except OSError as error:
            return Damage(self.folder, path, "unreadable", f"cannot be read: {error.strerror}", shard)
        return None

    def _check_file(self, name: str, entry: Entry, names: dict[str, str]) -> None:
        digest, n_bytes = hashlib.sha256(), 0
        with (self.folder / name).open("rb") as file:
            while slab := file.read(SLAB_BYTES):
                digest.update(slab)
                n_bytes += len(slab)
                self._advance(len(slab))
        if digest.hexdigest() == entry["sha256"]:
            return
        if digest.hexdigest() in names:
            raise _Bad("exchanged", f"holds what was published as {names[digest.hexdigest()]}")
        _refuse_size(n_bytes, entry["bytes"], "published")
        raise _Bad("changed", "its content is not what was published (sha256 differs)")

    def _array(self, name: str, listing: list[Entry]) -> Iterator[Damage]:
        seals: dict[int, ShardSeal] = {}
        numbers = {entry["commit_sha256"]: i for i, entry in enumerate(listing)}
        for i, entry in enumerate(listing):
            path = self.folder / "commits" / name / f"{i}.json"
            yield from self._try(path, partial(self._read_record, path, i, entry, numbers, seals), (name, i))
        for i, entry in enumerate(listing):
            path, check = repair_path(self.folder, name, i), partial(self._read_repair, name, i, entry, seals)
            yield from self._try(path, check, (name, i))
        try:
            array = ShardedArray(self.folder, name, listing=listing)
        except PipelineError:
            self._unknown.append(self.folder / name / "c")
            return  # zarr.json is among the files and has been reported
        n_chunks = array.shard_rows // array.chunk_rows
        for i, entry in enumerate(listing):
            path = array.shard_path(i)
            yield from self._try(path, partial(self._check_shard, path, i, n_chunks, entry, seals), (name, i))

    def _read_record(
        self, path: Path, i: int, entry: Entry, numbers: dict[str, int], seals: dict[int, ShardSeal]
    ) -> None:
        data = path.read_bytes()
        self._advance(len(data))
        digest = hashlib.sha256(data).hexdigest()
        if digest == entry["commit_sha256"]:
            seals[i] = ShardSeal.of(atomic.unseal(path, data))
            return
        if digest in numbers:
            raise _Bad("exchanged", f"is the record of shard {numbers[digest]}, not of {i}")
        _refuse_size(len(data), entry["commit_bytes"], "published")
        raise _Bad("changed", "is not the record that was published")

    def _read_repair(self, name: str, i: int, entry: Entry, seals: dict[int, ShardSeal]) -> None:
        try:
            record = read_repair(self.folder, name, i, entry["commit_sha256"])
        except Damaged:
            seals.pop(i, None)  # which bits are right is not known then; what the shard's own checksums tell is
            raise
        if record is not None:
            seals[i] = ShardSeal.of(record)
            self.remade.append(Remade(self.folder, name, i, record))

    def _check_shard(self, path: Path, i: int, n_chunks: int, entry: Entry, seals: dict[int, ShardSeal]) -> None:
        found, expected = _reread_shard(path, n_chunks, self._advance), seals.get(i)
        if expected is None:
            expected = ShardSeal(entry["bytes"], entry["index_crc32c"], found.seal.chunk_crc32c)
        if found.whole and found.seal == expected:
            return
        if found.whole:
            holds = next((j for j, seal in seals.items() if seal == found.seal), None)
            if holds is not None:
                raise _Bad("exchanged", f"holds shard {holds} of this array")
            if not set(found.seal.chunk_crc32c) & set(expected.chunk_crc32c):
                raise _Bad("exchanged", "holds rows of another array or artefact, or rows made again without a record")
        _refuse_size(found.seal.n_bytes, expected.n_bytes, "committed")
        if not found.seal.index_crc32c:
            raise _Bad("changed", "its chunk index is changed")
        pairs = zip(found.seal.chunk_crc32c, expected.chunk_crc32c, strict=False)
        bad = sorted({*found.bad_chunks, *(j for j, (a, b) in enumerate(pairs) if a != b)})
        first = f", the first is {bad[0]}" if bad else ""
        raise _Bad("changed", f"{len(bad)} of its {n_chunks} chunks are not as committed{first}")

    def _foreign(self) -> Iterator[Damage]:
        for path in _visible_files(self.folder):
            if path not in self._known and not any(folder in path.parents for folder in self._unknown):
                yield Damage(self.folder, path, "foreign", "is not part of the artefact: it was not published")


def _visible_files(folder: Path) -> Iterator[Path]:
    """Files and links below a folder; what is hidden is a lock or a temporary, and no part of an artefact."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in sorted([*names, *links]) if not name.startswith("."))


class _Bad(Exception):
    def __init__(self, kind: Kind, cause: str) -> None:
        super().__init__(cause)
        self.kind, self.cause = kind, cause


def _refuse_size(found: int, expected: int, when: str) -> None:
    if found != expected:
        raise _Bad("cut short" if found < expected else "changed", f"has {found} bytes, {expected} were {when}")


def _unfinished(path: Path) -> bool:
    """Whether a JSON object has no end."""
    return not path.read_bytes().rstrip().endswith(b"}")


@dataclass(frozen=True)
class _Found:
    """What a shard file holds: the seal that it bears, "" where its index is broken, and chunks that break it."""

    seal: ShardSeal
    bad_chunks: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        return bool(self.seal.index_crc32c) and not self.bad_chunks


def _reread_shard(path: Path, n_chunks: int, advance: Callable[[int], None]) -> _Found:
    with LOCAL.ranges(path) as file:
        try:
            entries, index_crc32c = read_index(file, path, n_chunks)
        except Damaged:
            return _Found(ShardSeal(file.n_bytes, "", ()))
        advance(16 * n_chunks + CRC_BYTES)
        pairs = [_chunk_crcs(file, offset, length, advance) for offset, length in entries]
        bad_chunks = tuple(j for j, (computed, stored) in enumerate(pairs) if computed != stored)
        return _Found(ShardSeal(file.n_bytes, index_crc32c, tuple(stored for _, stored in pairs)), bad_chunks)


def _chunk_crcs(file: Ranges, offset: int, length: int, advance: Callable[[int], None]) -> tuple[str, str]:
    """The crc32c of an inner chunk's bytes, and the one stored behind them (hex)."""
    crc, end = 0, offset + length - CRC_BYTES
    slab = np.empty(min(SLAB_BYTES, length), np.uint8)
    while offset < end:
        part = slab[: end - offset]
        file.read_into(offset, part.data)
        crc = google_crc32c.extend(crc, part)
        offset += len(part)
        advance(len(part))
    stored = bytearray(CRC_BYTES)
    file.read_into(end, stored)
    return crc.to_bytes(CRC_BYTES, "little").hex(), stored.hex()
