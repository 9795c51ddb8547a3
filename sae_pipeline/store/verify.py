"""Reading everything again that was published, while others publish and collect: what is damaged, and where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sae_pipeline.store import atomic
from sae_pipeline.store.artefact import ARTEFACT, Artefact, read_document
from sae_pipeline.store.draft import DRAFT
from sae_pipeline.store.errors import Damaged, NewerFormat, PathError
from sae_pipeline.store.garbage import identities
from sae_pipeline.store.outputs import CURRENT, Outputs
from sae_pipeline.store.progress import Progress, silent
from sae_pipeline.store.reread import Damage, Remade, Reread


@dataclass(frozen=True)
class Verified:
    """What was read and found.

    Attributes:
        artefacts: number of artefacts read.
        n_bytes: of their files.
        damage: files that are not as published, and pointers to what is not there.
        remade: shards made again with other bits within tolerance; they are whole.
        notes: what was not read, and why; sentences.
    """

    artefacts: int
    n_bytes: int
    damage: tuple[Damage, ...]
    remade: tuple[Remade, ...]
    notes: tuple[str, ...]


def verify(
    outputs: Outputs,
    study: str | None = None,
    *,
    progress: Progress = silent,
    found: Callable[[Damage], None] = lambda damage: None,
) -> Verified:
    """Read everything again that is published below an output folder; takes no lock and changes nothing.

    What is published after the beginning is not looked at, what is collected meanwhile is no damage.

    Args:
        outputs: the output folder.
        study: look only at what its `current.json` names, and at all that these were made from.
        progress: told the bytes read.
        found: told every damage at once.
    """
    work = _Verification(outputs, progress, found)
    folders = work.published() if study is None else work.used_by(study)
    work.read(folders)
    return Verified(work.artefacts, work.n_bytes, tuple(work.damage), tuple(work.remade), tuple(work.notes))


def made_from(outputs: Outputs, folder: Path) -> list[Path]:
    """Folders of published artefacts in whose lineage an artefact's identity stands, sorted."""
    short = folder.name[-12:]
    return [path for path in _published(outputs) if path != folder and short in _inputs(path)]


def _published(outputs: Outputs) -> list[Path]:
    found = sorted((outputs.root / "artefacts").glob(f"[!.]*/[!.]*/{ARTEFACT}"))
    return [path.parent for path in found if not path.parent.name.endswith(".rejected")]


def _inputs(folder: Path) -> set[str]:
    """First 12 digits of every identity in an artefact's lineage, as far as that can be read."""
    for name in (ARTEFACT, DRAFT):  # both hold it
        with suppress(OSError, Damaged):
            lineage = atomic.unseal(folder / name, (folder / name).read_bytes())["lineage"]
            return {identity[:12] for identity in identities(lineage)}
    return set()


class _Verification:
    def __init__(self, outputs: Outputs, progress: Progress, found: Callable[[Damage], None]) -> None:
        self._outputs, self._progress, self._found = outputs, progress, found
        self.artefacts, self.n_bytes, self._total_bytes = 0, 0, 0
        self.damage: list[Damage] = []
        self.remade: list[Remade] = []
        self.notes: list[str] = []

    def published(self) -> list[Path]:
        """Everything that is published; what pointers name and is not there is reported."""
        for study in self._outputs.studies():
            list(self._named(study))
        return _published(self._outputs)

    def used_by(self, study: str) -> list[Path]:
        """What a study's pointers name, and what that was made from."""
        by_short: dict[str, list[Path]] = {}
        for folder in _published(self._outputs):
            by_short.setdefault(folder.name[-12:], []).append(folder)
        found, waiting = dict[Path, None](), list(self._named(study))
        while waiting:
            folder = waiting.pop()
            if folder not in found:
                found[folder] = None
                waiting += [path for short in sorted(_inputs(folder)) for path in by_short.get(short, [])]
        return sorted(found)

    def read(self, folders: list[Path]) -> None:
        sizes = {folder: _n_bytes(folder) for folder in folders}
        self._total_bytes = sum(sizes.values())
        for folder, n_bytes in sizes.items():
            begun_bytes = self.n_bytes
            self._read(folder, begun_bytes + n_bytes)
            self.n_bytes = begun_bytes + n_bytes
            self._progress.update(self.n_bytes, self._total_bytes, "B")

    def _named(self, study: str) -> Iterator[Path]:
        """Published folders that the pointers of a study name; what else they name is reported."""
        current = self._outputs.study_dir(study) / CURRENT
        try:
            pointers = list(self._outputs.pointers(study).items())
        except NewerFormat as error:
            self.notes.append(f"not read: {error}")
            return
        except Damaged as error:
            self._report(Damage(current.parent, current, "changed", error.cause))
            return
        for node, where in pointers:
            folder = self._outputs.root / where
            if (folder / ARTEFACT).is_file():
                yield folder
            elif self._outputs.pointers(study).get(node) == where:
                cause = f"missing: {node} of study {study} points to it, and nothing is published there"
                self._report(Damage(folder, folder / ARTEFACT, "missing", cause))

    def _read(self, folder: Path, end_bytes: int) -> None:
        def advance(n_bytes: int) -> None:
            self.n_bytes = min(self.n_bytes + n_bytes, end_bytes)
            if self.n_bytes < self._total_bytes:  # the end is told once, by `read`
                self._progress.update(self.n_bytes, self._total_bytes, "B", damaged=len(self.damage))

        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # while it is open no other folder can be taken for it
        except FileNotFoundError:
            return self._gone(folder)
        try:
            again = Reread(folder, advance)
            for damage in again.damage():
                if not _is_at(folder, fd):
                    break
                self._report(damage)
            if _is_at(folder, fd):
                self.artefacts += 1
                self.remade += again.remade
            else:
                self._gone(folder)
        except NewerFormat as error:
            self.notes.append(f"not read: {error}")
        finally:
            os.close(fd)

    def _gone(self, folder: Path) -> None:
        self.notes.append(f"not read: {folder} was collected meanwhile")

    def _report(self, damage: Damage) -> None:
        self.damage.append(damage)
        self._found(damage)


def _is_at(folder: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(fd))
    except FileNotFoundError:
        return False


def _n_bytes(folder: Path) -> int:
    try:
        return Artefact(folder, read_document(folder)).n_bytes
    except (PathError, OSError):
        return 0
