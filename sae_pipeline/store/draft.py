"""A draft: an attempt at an artefact that can be killed, resumed, and at last published."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import FORMAT, create_array, storage_dtype
from sae_pipeline.store.artefact import ARTEFACT, Artefact
from sae_pipeline.store.errors import PipelineError
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.sharded_array import ShardedArray

DRAFT = "draft.json"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_RESERVED = {ARTEFACT, DRAFT, "commits"}


class Draft:
    """An unpublished artefact under construction; `open` it, write, `publish`. Holds its folder's lock while open."""

    def __init__(self, path: Path, document: dict[str, Any], lock: FileLock) -> None:
        self.path = path
        self.stage: str = document["stage"]
        self.key: str = document["key"]
        self.identity: str = document["identity"]
        self.lineage: dict[str, Any] = document["lineage"]
        self._lock = lock

    @classmethod
    def open(cls, path: Path, *, stage: str, key: str, identity: str, lineage: dict[str, Any]) -> Draft:
        """Create the draft at `path`, or resume the one of the same stage, key and identity that is there.

        Raises Busy if another process holds it, PipelineError if the path is published or belongs to another identity.
        """
        path = Path(path)
        _refuse_published(path)
        lock = _lock_folder(path)
        try:
            _refuse_published(path)  # its holder may have published it before we got the lock
            wanted = {"format": FORMAT, "stage": stage, "key": key, "identity": identity, "lineage": lineage}
            return cls(path, _create_or_resume(path / DRAFT, wanted), lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Release the lock; what was written stays, to be resumed."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def array(
        self,
        name: str,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
        shard_rows: int | None = None,
        chunk_rows: int | None = None,
    ) -> ShardedArray:
        """The array of that name: made if new, reopened if there (a differing shape, dtype or shard size is an error).

        `dtype` is a numpy name or "bfloat16". Without shape, dtype and shard_rows the array must exist.
        """
        path = self.file(name)
        if "/" in name:
            raise PipelineError(f"array name {name!r} must not contain a slash")
        new = not (path / "zarr.json").exists()
        if shape is None or dtype is None or shard_rows is None:
            if new:
                raise PipelineError(f"{path}: no such array; pass shape, dtype and shard_rows to make it")
            return ShardedArray(self.path, name, before_write=self._must_hold)
        if new:
            self._must_hold()
            create_array(self.path, name, shape=shape, dtype=dtype, shard_rows=shard_rows, chunk_rows=chunk_rows)
        array = ShardedArray(self.path, name, before_write=self._must_hold)
        logical = dtype if dtype == "bfloat16" else storage_dtype(dtype).name
        found = (array.shape, array.logical_dtype, array.shard_rows, array.chunk_rows)
        wanted = (tuple(shape), logical, shard_rows, chunk_rows or array.chunk_rows)
        if found != wanted:
            raise PipelineError(
                f"{path}: exists with (shape, dtype, shard rows, chunk rows) {found}, asked for {wanted}"
            )
        return array

    def file(self, name: str) -> Path:
        """The path of a file of this draft (which need not exist); refuses names outside it and reserved ones."""
        parts = PurePosixPath(name).parts
        if not parts or not all(_NAME.fullmatch(part) for part in parts) or parts[0] in _RESERVED:
            raise PipelineError(
                f"{name!r} cannot name a file here: relative, letters, digits and ._- only, not reserved"
            )
        return self.path.joinpath(*parts)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a file, atomically and durably."""
        self._must_hold()
        atomic.make_dir(self.file(name).parent)
        atomic.replace(self.file(name), data)

    def write_json(self, name: str, value: Any) -> None:
        """Write or replace a JSON file (see `write_json_atomic` for what becomes of numpy values and NaN)."""
        self.write_bytes(name, atomic.dumps(value).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """The value in a JSON file of this draft."""
        return atomic.read_json(self.file(name))

    def exists(self, name: str) -> bool:
        """Whether the draft has a file of that name."""
        return self.file(name).is_file()

    def remove(self, name: str) -> None:
        """Delete a file that shall not be published, such as a checkpoint; no error if it is not there."""
        self._must_hold()
        self.file(name).unlink(missing_ok=True)

    def publish(self, summary: dict[str, Any]) -> Artefact:
        """Make everything durable, list it in `artefact.json` by create-if-absent, release the lock.

        Raises PipelineError if a shard of an array is not committed, Damaged if one is not as committed.
        """
        self._must_hold()
        names = sorted(path.parent.name for path in self.path.glob("*/zarr.json"))
        arrays = {name: _list_shards(ShardedArray(self.path, name)) for name in names}
        self._sweep(names)
        files = {name: _list_file(self.path / name) for name in self._file_names(names)}
        self._sync_folders()
        document = {
            "format": FORMAT,
            "stage": self.stage,
            "key": self.key,
            "identity": self.identity,
            "lineage": self.lineage,
            "summary": summary,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
            "arrays": arrays,
        }
        atomic.create(self.path / ARTEFACT, atomic.seal(document))
        self.close()
        return Artefact.open(self.path)

    def _must_hold(self) -> None:
        if not self._lock.held:
            raise PipelineError(f"{self.path}: this draft is closed; open it again to write")

    def _sweep(self, arrays: list[str]) -> None:
        """Delete what crashed writers left: our hidden temporaries and Zarr's partial files."""
        partial = (path for name in arrays for path in (self.path / name / "c").rglob("*.partial"))
        for path in [*self.path.rglob(".*.tmp"), *partial]:
            path.unlink()

    def _file_names(self, arrays: list[str]) -> list[str]:
        """Everything but the lock, the commit records and the shards, which are listed with their arrays."""
        shards = {(name, "c") for name in arrays}
        found = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
        listed = [file for file in found if file.parts[0] not in (".lock", "commits") and file.parts[:2] not in shards]
        return sorted(file.as_posix() for file in listed)

    def _sync_folders(self) -> None:
        # A crash between mkdir and its fsync leaves a folder that later calls take for durable.
        for folder in [self.path, *self.path.parents[:3], *(path for path in self.path.rglob("*") if path.is_dir())]:
            atomic.fsync_dir(folder)


def _lock_folder(path: Path) -> FileLock:
    while True:
        atomic.make_dir(path)
        with contextlib.suppress(FileNotFoundError):  # an old attempt that was cleared away before we had its lock
            return FileLock(path / ".lock")


def _refuse_published(path: Path) -> None:
    if (path / ARTEFACT).exists():
        raise PipelineError(f"{path}: already published; open it with Artefact.open, nothing published is changed")


def _create_or_resume(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if not path.exists():
        atomic.create(path, atomic.seal(wanted))
    found = atomic.unseal(path, path.read_bytes())
    for field in ("format", "stage", "key", "identity"):
        if found[field] != wanted[field]:
            raise PipelineError(
                f"{path.parent}: holds a draft with {field} {found[field]!r}, not {wanted[field]!r}; use another folder"
            )
    return found


def _list_shards(array: ShardedArray) -> list[dict[str, Any]]:
    missing = [i for i in range(array.n_shards) if not array.is_committed(i)]
    if missing:
        some = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise PipelineError(f"array {array.name}: {len(missing)} of {array.n_shards} shards are not committed ({some})")
    return [_list_shard(array, i) for i in range(array.n_shards)]


def _list_shard(array: ShardedArray, i: int) -> dict[str, Any]:
    array.check_shard(i)
    record, path = array.commit(i), array.commit_path(i)
    return {
        "bytes": record["bytes"],
        "index_crc32c": record["index_crc32c"],
        "commit_bytes": path.stat().st_size,
        "commit_sha256": atomic.sha256_file(path),
    }


def _list_file(path: Path) -> dict[str, Any]:
    # Libraries write safetensors and parquet here themselves; durability is ours to give.
    atomic.fsync_file(path)
    return {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)}
