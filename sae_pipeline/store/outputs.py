"""Where things lie: artefacts shared by all studies, and each study's pointers to the ones it uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import FORMAT
from sae_pipeline.store.artefact import ARTEFACT, Artefact
from sae_pipeline.store.errors import Damaged, NewerFormat, NotPublished
from sae_pipeline.store.locks import FileLock

_REBUILT = "move it away and run the study again: it is made anew, and no artefact with it"

CURRENT, BEST = "current.json", "best.json"
"""Files of a study's folder that say which artefacts it uses; what they name is never collected."""

_OF_A_STUDY = (CURRENT, BEST, "summary.json")


class Outputs:
    """The layout of an output folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def artefact_dir(self, stage: str, key: str, identity: str) -> Path:
        """`<root>/artefacts/<stage>/<key>-<first 12 of the identity>`."""
        return self.root / "artefacts" / stage / f"{key}-{identity[:12]}"

    def study_dir(self, study: str) -> Path:
        """`<root>/<study>`: pointers, summaries and reports of one study."""
        return self.root / study

    def published(self, stage: str, key: str, identity: str) -> Artefact | None:
        """The artefact of that identity, or None if it is not published; `Damaged` if it is and is broken."""
        try:
            found = Artefact.open(self.artefact_dir(stage, key, identity))
        except NotPublished:
            return None
        return found if found.identity == identity else None

    def keeping(self) -> FileLock:
        """A context in which nothing is collected (see `collect`): what is found in it can be pointed at in it.

        Open drafts in it: a collection that begins later sees the draft, and keeps what its lineage names. Waits while
        a collection decides and moves (not while it deletes), and can be nested.
        """
        return self._collection_lock(shared=True)

    def collecting(self) -> FileLock:
        """The context of a collection: no pointer is moved and no draft opened meanwhile. Waits for those at it."""
        return self._collection_lock(shared=False)

    def _collection_lock(self, *, shared: bool) -> FileLock:
        atomic.make_dir(self.root / "artefacts")
        return FileLock(self.root / "artefacts" / ".collect.lock", wait=True, shared=shared)

    def pointers(self, study: str) -> Pointers:
        """The pointers of a study."""
        return Pointers(self.root, study)

    def studies(self) -> list[str]:
        """Names of the studies that have something here, sorted."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(path.name for path in folders if any((path / name).is_file() for name in _OF_A_STUDY))


class Pointers:
    """`<root>/<study>/current.json`: for each node of the study, the artefact in use, as a path relative to `root`."""

    def __init__(self, root: Path, study: str) -> None:
        self._root = Path(root)
        self._path = self._root / study / CURRENT

    def get(self, node_key: str) -> str | None:
        """The path of the node's artefact relative to the root, or None."""
        return self._read().get(node_key)

    def items(self) -> Iterator[tuple[str, str]]:
        """Pairs of node key and relative path, sorted."""
        yield from sorted(self._read().items())

    def set(self, node_key: str, artefact: Artefact) -> None:
        """Point a node at an artefact: the last step of publishing, an atomic replace under a lock.

        Raises NotPublished if the artefact was collected before this could name it.
        """
        atomic.make_dir(self._path.parent)
        target = artefact.path.resolve().relative_to(self._root.resolve()).as_posix()
        with Outputs(self._root).keeping(), FileLock(self._path.parent / ".current.lock", wait=True):
            if not (artefact.path / ARTEFACT).is_file():
                raise NotPublished(artefact.path)
            pointers = self._read()
            if pointers.get(node_key) != target:
                atomic.write_json_atomic(self._path, pointers | {node_key: target})

    def _read(self) -> dict[str, str]:
        try:
            found = atomic.read_json(self._path)
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            raise Damaged(self._path, "lies below a file; choose another output folder") from None
        except Damaged as error:
            raise Damaged(self._path, f"{error.cause}; {_REBUILT}") from None
        version = found.get("format", FORMAT) if isinstance(found, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise NewerFormat(self._path, version, FORMAT)
        if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
            raise Damaged(self._path, f"does not map nodes to folders; {_REBUILT}")
        return found
