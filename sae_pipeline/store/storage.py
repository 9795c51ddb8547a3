"""Where committed bytes lie: the few operations that the format asks of a disk, or later of an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.storage import LocalStore

from sae_pipeline.store import atomic
from sae_pipeline.store.atomic import Bytes


class Ranges(Protocol):
    """A file open for reading any part of it."""

    n_bytes: int

    def read_into(self, offset: int, *buffers: Bytes) -> None:
        """Fill the buffers, one after the other, with the bytes from `offset` on; EOFError if the file ends before."""
        ...


class Storage(Protocol):
    """What arrays ask of the place they lie in. Whatever was created or put is whole and durable when that returns."""

    def prepare(self, folders: Iterable[Path]) -> None:
        """Make folders that files are to be put into, and their names durable; nothing where there are no folders."""
        ...

    def create(self, path: Path, data: bytes) -> None:
        """Write a new file; FileExistsError if the name is taken, and then nothing changes."""
        ...

    def put(self, path: Path, parts: Sequence[Bytes]) -> None:
        """Write a file out of its parts, in order; one of that name is replaced, never written into."""
        ...

    def copy(self, source: Path, target: Path) -> None:
        """Give a file's bytes a second name, without moving them where that can be."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file; no error if it is not there."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        ...

    def read(self, path: Path) -> bytes:
        """A whole file; FileNotFoundError if it is not there."""
        ...

    def ranges(self, path: Path) -> AbstractContextManager[Ranges]:
        """A file to read parts of; FileNotFoundError if it is not there."""
        ...

    def for_zarr(self, folder: Path) -> Store:
        """The folder as Zarr reads it."""
        ...


class LocalFile:
    """`Ranges` of an open file on a disk."""

    def __init__(self, fd: int) -> None:
        self._fd, self.n_bytes = fd, os.fstat(fd).st_size

    def read_into(self, offset: int, *buffers: Bytes) -> None:
        """See `Ranges`. However little the system reads at a time (at most 2 GiB), the rest is asked for again."""
        waiting: list[Any] = [view for view in map(atomic.view_of, buffers) if view.nbytes]
        while waiting:
            n = os.preadv(self._fd, waiting, offset)
            if not n:
                raise EOFError(f"the file ends at byte {offset}")
            offset += n
            while waiting and n >= len(waiting[0]):
                n -= len(waiting.pop(0))
            if n:
                waiting[0] = waiting[0][n:]


class InMemory:
    """`Ranges` of bytes that are there already."""

    def __init__(self, data: bytes) -> None:
        self._data, self.n_bytes = memoryview(data), len(data)

    def read_into(self, offset: int, *buffers: Bytes) -> None:
        """See `Ranges`."""
        for view in map(atomic.view_of, buffers):
            part = self._data[offset : offset + len(view)]
            if len(part) < len(view):
                raise EOFError(f"the bytes end at {self.n_bytes}")
            view[:] = part
            offset += len(view)


class LocalDisk:
    """A file system."""

    def prepare(self, folders: Iterable[Path]) -> None:
        """See `Storage`. Names that are there are synced too: a crash may have come between mkdir and fsync."""
        parents = set[Path]()
        for folder in folders:
            atomic.make_dir(folder.parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            parents.add(folder.parent)
        for parent in sorted(parents):
            atomic.fsync_dir(parent)

    def create(self, path: Path, data: bytes) -> None:
        """See `Storage`."""
        atomic.create(path, data)

    def put(self, path: Path, parts: Sequence[Bytes]) -> None:
        """See `Storage`."""
        atomic.replace(path, *parts)

    def copy(self, source: Path, target: Path) -> None:
        """See `Storage`: a link, or a copy on another file system or one without links."""
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        atomic.fsync_file(target)
        atomic.fsync_dir(target.parent)

    def remove(self, path: Path) -> None:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            atomic.fsync_dir(path.parent)

    def exists(self, path: Path) -> bool:
        """See `Storage`."""
        return path.exists()

    def read(self, path: Path) -> bytes:
        """See `Storage`."""
        return path.read_bytes()

    @contextlib.contextmanager
    def ranges(self, path: Path) -> Iterator[LocalFile]:
        """See `Storage`."""
        fd = os.open(path, os.O_RDONLY)
        try:
            yield LocalFile(fd)
        finally:
            os.close(fd)

    def for_zarr(self, folder: Path) -> Store:
        """See `Storage`."""
        return LocalStore(folder, read_only=True)


LOCAL = LocalDisk()
