"""Where things lie: artefacts shared by all studies, and each study's pointers to the ones it uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sae_pipeline.store import atomic
from sae_pipeline.store.artefact import Artefact
from sae_pipeline.store.errors import NotPublished
from sae_pipeline.store.locks import FileLock


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

    def pointers(self, study: str) -> Pointers:
        """The pointers of a study."""
        return Pointers(self.root, study)


class Pointers:
    """`<root>/<study>/current.json`: for each node of the study, the artefact in use, as a path relative to `root`."""

    def __init__(self, root: Path, study: str) -> None:
        self._root = Path(root)
        self._path = self._root / study / "current.json"

    def get(self, node_key: str) -> str | None:
        """The path of the node's artefact relative to the root, or None."""
        return self._read().get(node_key)

    def items(self) -> Iterator[tuple[str, str]]:
        """Pairs of node key and relative path, sorted."""
        yield from sorted(self._read().items())

    def set(self, node_key: str, artefact: Artefact) -> None:
        """Point a node at an artefact: the last step of publishing, an atomic replace under a lock."""
        atomic.make_dir(self._path.parent)
        lock = FileLock(self._path.parent / ".current.lock", wait=True)
        try:
            target = artefact.path.resolve().relative_to(self._root.resolve()).as_posix()
            atomic.write_json_atomic(self._path, self._read() | {node_key: target})
        finally:
            lock.release()

    def _read(self) -> dict[str, str]:
        try:
            return dict(atomic.read_json(self._path))
        except FileNotFoundError:
            return {}
