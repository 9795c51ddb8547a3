"""A draft: an attempt at an artefact that can be killed, resumed, and at last published.

One process holds it alone; or several share it, who commit shards and nothing else, each shard under a claim.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import FORMAT, create_array, storage_dtype
from sae_pipeline.store.artefact import ARTEFACT, Artefact
from sae_pipeline.store.errors import Busy, PipelineError
from sae_pipeline.store.listing import list_file, list_shards
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.repairs import REPAIRS
from sae_pipeline.store.sharded_array import ShardedArray

DRAFT = "draft.json"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_RESERVED = {ARTEFACT, DRAFT, "commits", REPAIRS}
_CLAIMS, _PREPARED = ".claims", ".prepared"


class Draft:
    """An unpublished artefact under construction; `open` it, write, `publish`. Holds its folder's lock while open.

    To divide the work among processes, the first opens it, makes its arrays and files, and calls `share`; others
    `join`. All of them then commit shards under claims. Who publishes opens it alone, once they are done.
    """

    def __init__(self, path: Path, document: dict[str, Any], lock: FileLock) -> None:
        self.path = path
        self.stage: str = document["stage"]
        self.key: str = document["key"]
        self.identity: str = document["identity"]
        self.lineage: dict[str, Any] = document["lineage"]
        self._lock, self._shared = lock, False
        self._claims: list[FileLock] = []
        self._kept: dict[str, int] = {}

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

    @classmethod
    def join(cls, path: Path, *, stage: str, key: str, identity: str, lineage: dict[str, Any]) -> Draft | None:
        """Open a draft that others share; None if nobody has made it ready for that yet: then it takes an `open`.

        Raises Busy if a process holds it alone (see `wait`), PipelineError as `open` does.
        """
        path = Path(path)
        lock = _lock_folder(path, shared=True)
        try:
            _refuse_published(path)
            if not (path / _PREPARED).exists():
                lock.release()
                return None
            wanted = {"format": FORMAT, "stage": stage, "key": key, "identity": identity, "lineage": lineage}
            draft = cls(path, _create_or_resume(path / DRAFT, wanted), lock)
        except BaseException:
            lock.release()
            raise
        draft._shared = True
        lock.sign()
        return draft

    @staticmethod
    def wait(path: Path) -> None:
        """Wait until no process holds a draft alone."""
        _lock_folder(Path(path), shared=True, wait=True).release()

    def share(self) -> None:
        """Let others join. Its arrays and files must be made; from here on only shards can be committed, under claims.

        Raises PipelineError if it was published, or taken away, in the moment in which nobody held it.
        """
        self._must_hold()
        atomic.replace(self.path / _PREPARED, b"")
        self._shared = True
        if not self._lock.share():
            raise PipelineError(f"{self.path}: this draft was moved away; open it again")
        _refuse_published(self.path)

    def claim(self, array: str, i: int, *, wait: bool = False) -> contextlib.AbstractContextManager[object] | None:
        """The right to make shard i of an array; a context that ends it. None if another process has it.

        Needed where the draft is shared. It ends with the process too, however that dies. Ask again afterwards whether
        the shard is committed. `wait`: until the other process is done with the shard, or dead.
        """
        self._must_hold()
        if not self._shared:
            return contextlib.nullcontext()
        try:
            claim = self._locked(f"{array}/{i}", wait=wait)
        except Busy:
            return None
        self._claims = [*(held for held in self._claims if held.held), claim]
        return claim

    def close(self) -> None:
        """Release the lock and all claims; what was written stays, to be resumed."""
        for claim in self._claims:
            claim.release()
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
        codec: str = "none",
    ) -> ShardedArray:
        """The array of that name: made if new, reopened if there (a differing shape, dtype or shard size is an error).

        `dtype` is a numpy name or "bfloat16"; `codec` compresses a new array (`array_format.CODECS`). Without shape,
        dtype and shard_rows the array must exist.
        """
        path = self.file(name)
        if "/" in name:
            raise PipelineError(f"array name {name!r} must not contain a slash")
        new = not (path / "zarr.json").exists()
        if shape is None or dtype is None or shard_rows is None:
            if new:
                raise PipelineError(f"{path}: no such array; pass shape, dtype and shard_rows to make it")
            return self._array(name)
        if new:
            self._must_be_alone()
            create_array(
                self.path, name, shape=shape, dtype=dtype, shard_rows=shard_rows, chunk_rows=chunk_rows, codec=codec
            )
        array = self._array(name)
        logical = dtype if dtype == "bfloat16" else storage_dtype(dtype).name
        found = (array.shape, array.logical_dtype, array.shard_rows, array.chunk_rows)
        wanted = (tuple(shape), logical, shard_rows, chunk_rows or array.chunk_rows)
        if found != wanted:
            raise PipelineError(
                f"{path}: exists with (shape, dtype, shard rows, chunk rows) {found}, asked for {wanted}"
            )
        return array

    def keep(self, name: str, n_shards: int) -> None:
        """Publish the first `n_shards` shards of an array and no others; those that are committed are deleted."""
        self._must_be_alone()
        array = self.array(name)
        for i in range(n_shards, array.n_shards):
            array.evict(i)
        self._kept[name] = n_shards

    def file(self, name: str) -> Path:
        """The path of a file of this draft (which need not exist); refuses names outside it and reserved ones."""
        parts = PurePosixPath(name).parts
        if not parts or not all(_NAME.fullmatch(part) for part in parts) or parts[0] in _RESERVED:
            raise PipelineError(
                f"{name!r} cannot name a file here: relative, letters, digits and ._- only, not reserved"
            )
        return self.path.joinpath(*parts)

    def write_bytes(self, name: str, *parts: atomic.Bytes) -> None:
        """Write or replace a file, of one part or of several, atomically and durably."""
        self._must_be_alone()
        self._replace(name, *parts)

    def write_json(self, name: str, value: Any) -> None:
        """Write or replace a JSON file (see `write_json_atomic` for what becomes of numpy values and NaN)."""
        self.write_bytes(name, atomic.dumps(value).encode() + b"\n")

    def update_json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Replace the value in a JSON file by `change` of it; others that share the draft do so before or after."""
        self._must_hold()
        with self._locked(name, wait=True) if self._shared else contextlib.nullcontext():
            found = self.read_json(name)
            if (value := change(found)) != found:
                self._replace(name, atomic.dumps(value).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """The value in a JSON file of this draft."""
        return atomic.read_json(self.file(name))

    def exists(self, name: str) -> bool:
        """Whether the draft has a file of that name."""
        return self.file(name).is_file()

    def remove(self, name: str) -> None:
        """Delete a file that shall not be published, such as a checkpoint; no error if it is not there."""
        self._must_be_alone()
        self.file(name).unlink(missing_ok=True)

    def remove_array(self, name: str) -> None:
        """Delete an array with everything committed in it, to make it anew in another shape; no error if not there."""
        self._must_be_alone()
        path = self.file(name)
        for folder in (self.path / "commits" / name, path):  # a shard without its record does not count
            shutil.rmtree(folder, ignore_errors=True)
            atomic.fsync_dir(self.path)

    def publish(self, summary: dict[str, Any]) -> Artefact:
        """Make everything durable, list it in `artefact.json` by create-if-absent, release the lock.

        Raises PipelineError if a shard of an array is not committed, Damaged if one is not as committed.
        """
        self._must_be_alone()
        names = sorted(path.parent.name for path in self.path.glob("*/zarr.json"))
        arrays = {name: list_shards(self._array(name)) for name in names}
        self._sweep(names)
        files = {name: list_file(self.path / name) for name in self._file_names(names)}
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

    def _array(self, name: str) -> ShardedArray:
        return ShardedArray(self.path, name, before_write=self._must_hold, kept=self._kept.get(name))

    def _must_hold(self) -> None:
        if not self._lock.held:
            raise PipelineError(f"{self.path}: this draft is closed; open it again to write")
        if not self._lock.in_place:
            raise PipelineError(
                f"{self.path}: this draft was moved away while in work; what it holds by now is another's"
            )

    def _must_be_alone(self) -> None:
        self._must_hold()
        if self._shared:
            raise PipelineError(f"{self.path}: others may be at work on this draft; open it alone to change it")

    def _replace(self, name: str, *parts: atomic.Bytes) -> None:
        atomic.make_dir(self.file(name).parent)
        atomic.replace(self.file(name), *parts)

    def _locked(self, name: str, *, wait: bool) -> FileLock:
        path = self.path / _CLAIMS / name
        atomic.make_dir(path.parent)
        return FileLock(path, wait=wait)

    def _sweep(self, arrays: list[str]) -> None:
        """Delete claims, and what crashed writers left: our hidden temporaries and Zarr's partial files."""
        shutil.rmtree(self.path / _CLAIMS, ignore_errors=True)
        (self.path / _PREPARED).unlink(missing_ok=True)
        partial = (path for name in arrays for path in (self.path / name / "c").rglob("*.partial"))
        for path in [*self.path.rglob(".*.tmp"), *partial]:
            path.unlink()

    def _file_names(self, arrays: list[str]) -> list[str]:
        """Everything but hidden files, the commit records and the shards, which are listed with their arrays."""
        shards = {(name, "c") for name in arrays}
        found = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
        own = [file for file in found if file.parts[0] != "commits" and not file.parts[0].startswith(".")]
        listed = [file for file in own if file.parts[:2] not in shards]
        return sorted(file.as_posix() for file in listed)

    def _sync_folders(self) -> None:
        # A crash between mkdir and its fsync leaves a folder that later calls take for durable.
        for folder in [self.path, *self.path.parents[:3], *(path for path in self.path.rglob("*") if path.is_dir())]:
            atomic.fsync_dir(folder)


def _lock_folder(path: Path, *, shared: bool = False, wait: bool = False) -> FileLock:
    while True:
        atomic.make_dir(path)
        with contextlib.suppress(FileNotFoundError):  # an old attempt that was cleared away before we had its lock
            return FileLock(path / ".lock", shared=shared, wait=wait)


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
