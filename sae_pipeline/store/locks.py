"""Who may write: an flock, exclusive or shared, that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from sae_pipeline.store.errors import Busy

_CLOCK_SLACK_S = 5.0  # the boot time that /proc tells is a whole second and moves with the clock


class FileLock:
    """A lock on a file, held from construction to `release`; `Busy` names the holder's process id.

    Exclusive, or with `shared` held by any number at once and by nobody exclusively. FileNotFoundError if the folder
    is not there.
    """

    def __init__(self, path: Path, *, wait: bool = False, shared: bool = False) -> None:
        flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        self._fd: int | None = _acquire(path, flags)
        while not _is_at(path, self._fd):  # its folder was moved away while we waited: this locks nothing any more
            os.close(self._fd)
            self._fd = None
            self._fd = _acquire(path, flags)
        self._path = path
        if not shared:
            self.sign()

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock."""
        return self._fd is not None

    @property
    def in_place(self) -> bool:
        """Whether the file it locks is still the one at its path; if not, others may hold the one that is there."""
        return self._fd is not None and _is_at(self._path, self._fd)

    def sign(self) -> None:
        """Write this process's id into the file; a shared lock bears the id of the last that signed."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, _signature(), 0)

    def share(self) -> bool:
        """Make an exclusive lock a shared one. False, and nothing is held, if the file was moved away meanwhile.

        Others may get it exclusively in between: this waits for them, and they may have changed what it guards.
        """
        if self._fd is None:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        if not _is_at(self._path, self._fd):
            self.release()
        else:
            self.sign()
        return self.held

    def release(self) -> None:
        """Give the lock back; the file stays (deleting it would let two processes lock different files)."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if os.pread(fd, 32, 0) == _signature():
                os.ftruncate(fd, 0)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _signature() -> bytes:
    return str(os.getpid()).encode()


def _acquire(path: Path, flags: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, flags)
    except BlockingIOError:
        os.close(fd)
        raise Busy(path.parent, str(holder(path) or "")) from None
    return fd


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def holder(path: Path) -> int | None:
    """Process id of the live holder that signed a lock, read from the file; takes no lock, so it disturbs nobody.

    None if nobody signed it: a holder that was killed leaves its id behind, so the process it names must be alive and
    older than the lock. For a decision that must not be wrong take the lock: a holder on another machine is not seen.
    """
    try:
        pid, taken_at_s = int(path.read_bytes()), path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:  # it is there and belongs to someone else
        pass
    except (ProcessLookupError, OverflowError):
        return None
    return pid if _began_before(pid, taken_at_s + _CLOCK_SLACK_S) else None


def _began_before(pid: int, moment_s: float) -> bool:
    """Whether a process is running and began before a moment (Unix time); True where there is no /proc to ask."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path("/proc/stat").read_text().splitlines()
        boot_s = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    except (OSError, StopIteration, ValueError):
        return not Path("/proc/self/stat").exists()
    return state not in "ZX" and boot_s + int(rest[18]) / os.sysconf("SC_CLK_TCK") <= moment_s
