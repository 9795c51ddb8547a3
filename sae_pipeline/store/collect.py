"""Deleting garbage so that nobody can begin to use what goes, and a death at any moment leaves nothing half-read."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sae_pipeline.store import atomic
from sae_pipeline.store.errors import Busy
from sae_pipeline.store.garbage import TRASH, Garbage, Policy, in_use, survey
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.outputs import Outputs


@dataclass(frozen=True)
class Collected:
    """What a collection did.

    Attributes:
        deleted: what is gone.
        failed: what could not be moved or deleted, and why; the next collection tries again.
        notes: why less was garbage than could be; sentences.
    """

    deleted: tuple[Garbage, ...]
    failed: tuple[tuple[Garbage, str], ...]
    notes: tuple[str, ...]


def collect(outputs: Outputs, policy: Policy) -> Collected:
    """Delete the garbage of an output folder (see `survey` for what that is).

    Decides anew, with the collection lock held: whoever pointed at an artefact or opened a draft before keeps it,
    whoever comes later finds it gone and makes it again. Folders leave by one rename into a trash folder and are
    deleted there, after the lock is given back; trash of an interrupted collection goes too.

    Raises:
        Damaged: the pointers of a study cannot be read; nothing is deleted then.
    """
    if not outputs.root.is_dir():
        return Collected((), (), ())
    work = _Work()
    with outputs.collecting():
        attempts = [found for found in survey(outputs, policy).garbage if found.kind != "version"]
        work.move(attempts)
        # Only now is it certain which drafts are at work, on another machine too: what they are made from stays.
        found = survey(outputs, policy, held=lambda folder: folder in work.busy or in_use(folder))
        work.move([item for item in found.garbage if item.kind == "version"])
    work.delete()
    return Collected(tuple(work.deleted), tuple(work.failed), found.notes)


def set_aside(outputs: Outputs, folder: Path) -> Path:
    """Move an artefact or a draft into its stage's trash, where the next collection deletes it; returns where it is.

    Raises:
        Busy: a process is at work on it.
        FileNotFoundError: it is not there.
    """
    with outputs.collecting():
        return _to_trash(folder)


class _Work:
    def __init__(self) -> None:
        self.busy: set[Path] = set()
        self.deleted: list[Garbage] = []
        self.failed: list[tuple[Garbage, str]] = []
        self._moved: list[tuple[Garbage, Path]] = []

    def move(self, garbage: Iterable[Garbage]) -> None:
        """Take folders out of everybody's reach; what lies in the trash or is a temporary needs no moving."""
        for item in garbage:
            try:
                here = item.kind in ("temporary", "trash")
                self._moved.append((item, item.path if here else _to_trash(item.path)))
            except Busy as error:
                self.busy.add(item.path)
                self.failed.append((item, error.cause))
            except FileNotFoundError:
                continue  # its owner was faster
            except OSError as error:
                self.failed.append((item, str(error)))

    def delete(self) -> None:
        for item, path in self._moved:
            try:
                _delete(path)
                self.deleted.append(item)
            except OSError as error:
                self.failed.append((item, str(error)))


def _to_trash(folder: Path) -> Path:
    """Rename a folder into its stage's trash, durably, with its own lock held: a writer at work makes it Busy."""
    trash = folder.parent / TRASH
    atomic.make_dir(trash)
    target = trash / f"{folder.name}.{secrets.token_hex(6)}"
    with FileLock(folder / ".lock"):
        os.rename(folder, target)
    # Were the deletion to survive a power cut and the rename not, half an artefact would lie where it was.
    atomic.fsync_dir(trash)
    atomic.fsync_dir(folder.parent)
    return target


def _delete(path: Path) -> None:
    """Delete a file or folder; another collection may be at the same."""
    while path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    path.unlink(missing_ok=True)
