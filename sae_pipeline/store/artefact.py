"""A published artefact: immutable, complete, and checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import FORMAT
from sae_pipeline.store.errors import Damaged, NewerFormat, NotPublished, PipelineError
from sae_pipeline.store.sharded_array import ShardedArray

if TYPE_CHECKING:
    from sae_pipeline.store.reread import Damage

ARTEFACT = "artefact.json"
EAGER_BYTES = 1 << 20  # files up to this size are hashed when the artefact is opened, larger ones when first asked for


class Artefact:
    """A published result; get one from `Artefact.open` or `Draft.publish`."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path = path
        self.stage: str = document["stage"]
        self.key: str = document["key"]
        self.identity: str = document["identity"]
        self.lineage: dict[str, Any] = document["lineage"]
        self.summary: dict[str, Any] = document["summary"]
        self.created_at: str = document["created_at"]
        self._files: dict[str, dict[str, Any]] = document["files"]
        self._arrays: dict[str, list[dict[str, Any]]] = document["arrays"]
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: Path) -> Artefact:
        """Open a published artefact; NotPublished, Damaged (names file and cause) or NewerFormat.

        Checks `artefact.json` against its own checksum, the size of every listed file and the hash of those up to
        1 MiB; larger files and shards are checked when they are read.
        """
        path = Path(path)
        artefact = cls(path, read_document(path))
        for name, entry in artefact._files.items():
            artefact._check_size(name)
            if entry["bytes"] <= EAGER_BYTES:
                artefact._check_hash(name)
        return artefact

    @property
    def n_bytes(self) -> int:
        """Bytes on disk: files, shards and commit records."""
        shards = [shard for array in self._arrays.values() for shard in array]
        listed = [entry["bytes"] for entry in self._files.values()]
        return int(sum(listed) + sum(shard["bytes"] + shard["commit_bytes"] for shard in shards))

    @property
    def files(self) -> list[str]:
        """Names of the listed files, sorted."""
        return sorted(self._files)

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays, sorted."""
        return sorted(self._arrays)

    def listing(self, name: str) -> list[dict[str, Any]]:
        """What `artefact.json` lists for the shards of an array (docs/format.md), in order."""
        return self._arrays[name]

    def exists(self, name: str) -> bool:
        """Whether a file of that name was published."""
        return name in self._files

    def file(self, name: str) -> Path:
        """The path of a published file whose size and hash have been checked; `Damaged` if they differ."""
        if name not in self._files:
            raise PipelineError(f"{self.path}: has no file {name!r}; it has {', '.join(self.files) or 'none'}")
        if name not in self._checked:
            self._check_file(name)
        return self.path / name

    def read_json(self, name: str) -> Any:
        """The value in a published JSON file."""
        return atomic.read_json(self.file(name))

    def array(self, name: str) -> ShardedArray:
        """A published array, read-only."""
        if name not in self._arrays:
            raise PipelineError(f"{self.path}: has no array {name!r}; it has {', '.join(self.arrays) or 'none'}")
        self.file(f"{name}/zarr.json")
        return ShardedArray(self.path, name, listing=self._arrays[name])

    def verify(self) -> list[Damage]:
        """Read everything again, every shard's rows included, and list what is not as published."""
        from sae_pipeline.store.reread import Reread  # which reads artefacts

        return list(Reread(self.path).damage())

    def _check_file(self, name: str) -> None:
        self._check_size(name)
        self._check_hash(name)

    def _check_size(self, name: str) -> None:
        path, expected = self.path / name, self._files[name]["bytes"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Damaged(path, "missing: it was published but is not there") from None
        if size != expected:
            raise Damaged(path, f"has {size} bytes, {expected} were published")

    def _check_hash(self, name: str) -> None:
        self._checked.discard(name)
        if atomic.sha256_file(self.path / name) != self._files[name]["sha256"]:
            raise Damaged(self.path / name, "its content is not what was published (sha256 differs)")
        self._checked.add(name)


def read_document(path: Path) -> dict[str, Any]:
    """What the `artefact.json` of a folder says; NotPublished, Damaged or NewerFormat."""
    file = path / ARTEFACT
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotPublished(path) from None
    document = atomic.unseal(file, data)
    if document["format"] > FORMAT:
        raise NewerFormat(file, document["format"], FORMAT)
    return document
