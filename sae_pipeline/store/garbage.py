"""What lies in an output folder and nothing refers to: found here, deleted by `collect`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import FORMAT
from sae_pipeline.store.artefact import ARTEFACT
from sae_pipeline.store.disk import disk_use, files_below
from sae_pipeline.store.draft import DRAFT
from sae_pipeline.store.errors import Damaged
from sae_pipeline.store.locks import holder
from sae_pipeline.store.outputs import BEST, CURRENT, Outputs

Kind = Literal["version", "draft", "rejected", "temporary", "trash"]

TRASH = ".trash"
"""Folder of a stage in which lies what is being deleted; nothing is ever read from it."""

PROBE = ".doctor-"
"""Beginning of the names of the folders in which `sae-pipeline doctor` tries out the file system."""

_FOLDER = re.compile(r".+-([0-9a-f]{12})(\.rejected)?")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_WRITING_S = 3600.0  # so long a temporary may belong to a writer at work, whatever age is asked for


@dataclass(frozen=True)
class Policy:
    """What counts as garbage, beside that no pointer leads to it.

    Attributes:
        older_than_s: seconds since it was published or last written to.
        wanted: identities that studies ask for; their unfinished drafts are kept. None: not known for every study, so
            all unfinished drafts are kept.
        drafts: unfinished drafts go whoever asks for them, unless a process is at work on them.
    """

    older_than_s: float = 86400.0
    wanted: Collection[str] | None = None
    drafts: bool = False


@dataclass(frozen=True)
class Garbage:
    """A folder or file that may go: what it is, why it may, its bytes, and seconds since it last changed."""

    path: Path
    kind: Kind
    reason: str
    n_bytes: int
    age_s: float


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        garbage: what a collection would delete now.
        young: what would be garbage, were it older.
        resumable: unfinished drafts that are kept because a study asks for them, or may.
        in_use: drafts that a process is at work on.
        notes: why less is garbage than could be; sentences.
    """

    garbage: tuple[Garbage, ...]
    young: tuple[Garbage, ...]
    resumable: tuple[Path, ...]
    in_use: tuple[Path, ...]
    notes: tuple[str, ...]


def in_use(folder: Path) -> bool:
    """Whether a process is at work on a draft, as its lock file says; takes no lock."""
    return holder(folder / ".lock") is not None


def survey(outputs: Outputs, policy: Policy, held: Callable[[Path], bool] = in_use) -> Survey:
    """Find the garbage of an output folder; changes nothing and takes no lock.

    Kept is what a pointer of any study names (`current.json`; of `best.json` the best and the latest version), what is
    not garbage for another reason (young, in use, an unfinished draft that is asked for), and everything that the
    lineage of something kept names. Links, and folders not named as artefacts are, are never garbage.

    Args:
        outputs: the output folder.
        policy: age, and what becomes of unfinished drafts.
        held: whether a process is at work on a draft's folder.

    Raises:
        Damaged: the pointers of a study cannot be read, so nothing is known to be garbage.
    """
    return _Survey(outputs, policy, held).result()


class _Folder:
    """The folder of an artefact, of an attempt at one, or of a rejected attempt."""

    def __init__(self, path: Path, short: str, rejected: bool) -> None:
        self.path, self.short, self.rejected = path, short, rejected
        self.published = not rejected and (path / ARTEFACT).is_file()
        self.document: dict[str, Any] | None = None
        self.unreadable = False
        for name in (DRAFT, ARTEFACT):  # both hold the lineage
            try:
                self.document = atomic.unseal(path / name, (path / name).read_bytes())
            except FileNotFoundError:
                continue
            except (Damaged, PermissionError):
                self.unreadable = True

    @property
    def ours(self) -> bool:
        """Without `draft.json` it is an attempt that was killed before its first write, or not of our making."""
        known = self.document is not None or self.unreadable
        return known or all(path.name.startswith(".") for path in self.path.iterdir())

    @property
    def newer(self) -> bool:
        """Whether a later version of the pipeline made it."""
        return self.document is not None and int(self.document["format"]) > FORMAT

    def inputs(self) -> Iterator[str]:
        """First 12 digits of every identity that its lineage names."""
        if self.document is not None:
            yield from (identity[:12] for identity in identities(self.document["lineage"]))

    def describe(self, kind: Kind, reason: str) -> Garbage:
        n_bytes, written_at_s = disk_use(self.path)
        published_at = (self.document or {}).get("created_at")
        if published_at is not None:  # copying an output folder makes its files young, not its artefacts
            written_at_s = datetime.fromisoformat(published_at).timestamp()
        return Garbage(self.path, kind, reason, n_bytes, _age_s(written_at_s))


class _Survey:
    """Sorts every folder into one of the lists, then sees what the kept ones were made from."""

    def __init__(self, outputs: Outputs, policy: Policy, held: Callable[[Path], bool]) -> None:
        self._outputs, self._policy, self._held = outputs, policy, held
        self._folders = [folder for folder in _artefact_folders(outputs.root) if folder.ours]
        self._kept: list[_Folder] = []
        self._loose: list[tuple[_Folder, Garbage]] = []
        self._resumable: list[Path] = []
        self._in_use: list[Path] = []
        self._notes: list[str] = []

    def result(self) -> Survey:
        paths, shorts = _named_by_pointers(self._outputs)
        for folder in self._folders:
            if not folder.rejected and (folder.short in shorts or folder.path.resolve() in paths):
                self._kept.append(folder)
            else:
                self._sort(folder)
        elsewhere = paths - {folder.path.resolve() for folder in self._folders}
        self._kept += [_Folder(path, "", False) for path in elsewhere]
        old, young = self._by_age(self._with_inputs(self._kept))
        # What is only too young keeps what it was made from like everything that stays.
        staying = self._with_inputs([*self._kept, *(folder for folder, _ in young)])
        garbage = [found for folder, found in old if folder not in staying]
        if any(found.kind == "version" for found in garbage):
            garbage = self._without_guesses(staying, garbage)
        gone = {found.path for found in garbage}
        garbage += _trash(self._outputs.root)
        garbage += self._temporaries([folder.path for folder in self._folders if folder.path not in gone])
        garbage.sort(key=lambda found: (found.kind, found.path))
        lists = tuple(self._resumable), tuple(self._in_use), tuple(self._notes)
        return Survey(tuple(garbage), tuple(found for _, found in young), *lists)

    def _sort(self, folder: _Folder) -> None:
        """Decide about a folder that no pointer names."""
        wanted = self._policy.wanted
        asked_for = folder.document is not None and (wanted is None or folder.document["identity"] in wanted)
        damage = ", and it is damaged" if folder.unreadable else ""
        if folder.rejected and not folder.path.is_symlink():
            self._loose.append((folder, folder.describe("rejected", "rejected by its gate")))
        elif folder.path.is_symlink():  # somebody put it where it is
            self._kept.append(folder)
        elif folder.newer:
            self._kept.append(folder)
            self._notes.append(f"{folder.path} was made by a newer version and is left alone")
        elif folder.published:
            self._loose.append((folder, folder.describe("version", f"no pointer leads to it{damage}")))
        elif self._held(folder.path):
            self._kept.append(folder)
            self._in_use.append(folder.path)
        elif asked_for and not self._policy.drafts:
            self._kept.append(folder)
            self._resumable.append(folder.path)
        else:
            unasked = "" if wanted is None or asked_for else ", and no study asks for it"
            self._loose.append((folder, folder.describe("draft", f"unfinished{damage or unasked}")))

    def _by_age(self, kept: set[_Folder]) -> tuple[list[tuple[_Folder, Garbage]], list[tuple[_Folder, Garbage]]]:
        old, young = list[tuple[_Folder, Garbage]](), list[tuple[_Folder, Garbage]]()
        for folder, found in self._loose:
            if folder not in kept:
                (old if found.age_s >= self._policy.older_than_s else young).append((folder, found))
        return old, young

    def _with_inputs(self, folders: Iterable[_Folder]) -> set[_Folder]:
        """These folders and everything they were made from, however many steps back."""
        by_short: dict[str, list[_Folder]] = {}
        for folder in self._folders:
            if not folder.rejected:
                by_short.setdefault(folder.short, []).append(folder)
        found, waiting = set[_Folder](), list(folders)
        while waiting:
            folder = waiting.pop()
            if folder not in found:
                found.add(folder)
                waiting += [made_from for short in folder.inputs() for made_from in by_short.get(short, [])]
        return found

    def _without_guesses(self, staying: set[_Folder], garbage: list[Garbage]) -> list[Garbage]:
        """No published version goes while it is unknown what something that stays was made from."""
        unknown = sorted(folder.path for folder in staying if folder.document is None and folder.unreadable)
        if not unknown:
            return garbage
        self._notes.append(
            f"{unknown[0]} cannot be read, so it is not known what it was made from: no published version counts as "
            "garbage; delete that folder (a run makes it again) and try again"
        )
        return [found for found in garbage if found.kind != "version"]

    def _temporaries(self, folders: Iterable[Path]) -> Iterator[Garbage]:
        """Temporaries that killed writers left in study folders and in artefacts that nobody is at work on."""
        studies = [self._outputs.study_dir(study) for study in self._outputs.studies()]
        idle = [folder for folder in folders if folder not in self._in_use]
        files = (path for folder in (*studies, *idle) for path in files_below(folder))
        found = [path for path in files if _TEMPORARY.fullmatch(path.name)]
        for path in [*found, *self._outputs.root.glob(f"{PROBE}*")]:
            n_bytes, written_at_s = disk_use(path)
            if _age_s(written_at_s) >= max(self._policy.older_than_s, _WRITING_S):
                yield Garbage(path, "temporary", "left by a process that was killed", n_bytes, _age_s(written_at_s))


def _artefact_folders(root: Path) -> Iterator[_Folder]:
    for path in sorted((root / "artefacts").glob("[!.]*/[!.]*")):
        match = _FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            yield _Folder(path, match[1], bool(match[2]))


def _named_by_pointers(outputs: Outputs) -> tuple[set[Path], set[str]]:
    """Folders that pointers of any study name, and first 12 digits of the latest challengers of the champions."""
    names: set[str] = set()
    shorts: set[str] = set()
    for study in outputs.studies():
        current, best = (outputs.study_dir(study) / name for name in (CURRENT, BEST))
        if not current.exists():  # a study that has results has pointers
            raise Damaged(current, "is missing; run the study again, which writes it, or delete the study's folder")
        names |= {where for _, where in outputs.pointers(study).items()}
        try:
            for entry in atomic.read_json(best).values() if best.exists() else ():
                names |= {entry["artefact"]} - {None}
                shorts |= {past["challenger"][:12] for past in entry["history"][-1:]}
        except (AttributeError, KeyError, TypeError) as error:
            raise Damaged(best, f"is not what this version writes ({error!r})") from error
    return {(outputs.root / name).resolve() for name in names}, shorts


def identities(lineage: Any) -> Iterator[str]:
    """Every identity that a lineage names, however deep."""
    if isinstance(lineage, dict | list):
        for value in lineage.values() if isinstance(lineage, dict) else lineage:
            yield from identities(value)
    elif isinstance(lineage, str) and _IDENTITY.fullmatch(lineage):
        yield lineage


def _trash(root: Path) -> Iterator[Garbage]:
    for path in (root / "artefacts").glob(f"[!.]*/{TRASH}/*"):
        n_bytes, written_at_s = disk_use(path)
        yield Garbage(path, "trash", "its deletion was interrupted", n_bytes, _age_s(written_at_s))


def _age_s(written_at_s: float) -> float:
    """Seconds since a moment; none for what vanished while it was looked at."""
    return max(0.0, time.time() - written_at_s) if written_at_s else 0.0
