"""Errors of the pipeline: every one says what is wrong and what to do about it."""

from __future__ import annotations

from pathlib import Path


class PipelineError(ValueError):
    """Base of every error a user can act on."""


class PathError(PipelineError):
    """An error about one file or folder: `path` and `cause`."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path, self.cause = path, cause


class NotPublished(PathError):
    """The folder holds no `artefact.json`: nothing there may be read as a result."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "no published artefact here (artefact.json is missing); run the stage that makes it")


class Damaged(PathError):
    """A published or committed file is missing, cut short, changed or exchanged."""


class NewerFormat(PathError):
    """The artefact was written by a newer version of the pipeline."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(path, f"format {found}, this version reads up to {known}; upgrade sae-pipeline to open it")


class Busy(PathError):
    """Another process holds the lock; `pid` is its process id, empty if unknown."""

    def __init__(self, path: Path, pid: str) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(path, f"{holder} is working on it; wait for it to end or stop it")
        self.pid = pid
