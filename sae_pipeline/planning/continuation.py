"""Which earlier version of the tokens a study goes on from, decided before anything runs.

New text makes a new version of the tokens. Where all that an earlier version read is still there, the new one begins
with what that one holds (see `sae_pipeline.tokens.growth`), and its record says `continues: <identity>`. So the record
depends on what the study's pointer names, and is the same before and after it is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sae_pipeline.store import Artefact, NotPublished, Outputs, PipelineError, Pointers
from sae_pipeline.store.errors import PathError
from sae_pipeline.study import identity_of
from sae_pipeline.tokens.schema import FILES

CONTINUES: Final = "continues"
"""Key of a tokens record: identity of the version that this one begins with; absent where it begins with nothing."""

Record = Mapping[str, Any]
Files = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Version:
    """Published tokens: identity, record, and the SHA-256 of every local file that they were read from, by corpus."""

    identity: str
    record: Record
    files: Files

    @classmethod
    def read(cls, path: Path) -> Version:
        """The version published in a folder; NotPublished, Damaged or NewerFormat."""
        artefact = Artefact.open(path)
        files = artefact.read_json(FILES) if artefact.exists(FILES) else {}
        return cls(artefact.identity, artefact.lineage, files)


@dataclass(frozen=True)
class InUse:
    """The tokens that a study uses.

    Attributes:
        short: first 12 digits of their identity.
        versions: they and what they continue, however many steps back, newest first. Where they cannot be opened, all
            tokens that can: one of these may be what they continued.
        lost: why they cannot be opened.
    """

    short: str
    versions: tuple[Version, ...]
    lost: PathError | None = None


def tokens_in_use(outputs: Outputs, pointers: Pointers) -> InUse | None:
    """What the study's pointer says of its tokens; None before the first, or where the pointers cannot be read."""
    try:
        where = pointers.get("tokens")
    except PathError:
        return None  # whoever goes by the pointers says what is wrong with them
    if where is None:
        return None
    short = where.rpartition("-")[2]
    try:
        newest = Version.read(outputs.root / where)
    except PathError as error:
        return InUse(short, tuple(_all(outputs)), error)
    return InUse(short, (newest, *_earlier(outputs, newest)))


def find_version(outputs: Outputs, stage: str, identity: str) -> Artefact | None:
    """The published artefact of a stage with that identity, whatever its key; None if there is none that opens."""
    for path in sorted((outputs.root / "artefacts" / stage).glob(f"*-{identity[:12]}")):
        try:
            artefact = Artefact.open(path)
        except PathError:
            continue
        if artefact.identity == identity:
            return artefact
    return None


def continued(record: Record, files: Files, in_use: InUse | None) -> dict[str, Any]:
    """The record of a study's tokens, given that of a build from nothing.

    That of the newest version in use whose content is what the study asks for; else one that continues the newest that
    the study's content contains; else the given one.

    Args:
        record: as it would be if there were no earlier version.
        files: SHA-256 of every file of the corpora that are local files, by corpus and file.
        in_use: what the study uses now.

    Raises:
        PipelineError: the tokens in use cannot be opened and are not what the study asks for: whether they could be
            continued cannot be told, and a build from nothing would make every shard again.
    """
    if in_use is None:
        return dict(record)
    found = (_of_version(record, files, version) for version in in_use.versions)
    records = [item for item in found if item is not None] + [dict(record)]
    if in_use.lost is None:
        return records[0]
    same = next((item for item in records if identity_of(item).startswith(in_use.short)), None)
    if same is None and not isinstance(in_use.lost, NotPublished):
        raise PipelineError(
            f"{in_use.lost}; the tokens in use cannot be read, so that nothing can go on from them: mend that, or move "
            f"their folder away to build them, and all that is made from them, from nothing"
        )
    return same or dict(record)


def _of_version(record: Record, files: Files, version: Version) -> dict[str, Any] | None:
    """The version's own record if its content is what is asked for, one that continues it if it can be, else None."""
    alone = {name: value for name, value in version.record.items() if name != CONTINUES}
    if identity_of(alone) == identity_of(record):
        return dict(version.record)
    return {**record, CONTINUES: version.identity} if _contains(record, files, alone, version.files) else None


def _contains(record: Record, files: Files, then: Record, files_then: Files) -> bool:
    """Whether the content of a record is that of an earlier one with files, corpora or training rows added."""
    if (then.get("stage"), then.get("version")) != (record["stage"], record["version"]):
        return False
    old, new = then["config"], record["config"]
    corpora = list(zip(old["corpora"], new["corpora"], strict=False))
    return (
        _fixed(old) == _fixed(new)
        and new["tokens"]["train"] >= old["tokens"]["train"]
        and len(new["corpora"]) >= len(old["corpora"])
        and all(new["split_list"].get(name) == listed for name, listed in old["split_list"].items())
        and all(_same_or_grown(a, b, files, files_then) for a, b in corpora)
    )


def _fixed(config: Record) -> str:
    """Hash of the settings that no later version may change."""
    tokens = {name: value for name, value in config["tokens"].items() if name != "train"}
    rest = {name: value for name, value in config.items() if name not in ("tokens", "corpora", "split_list")}
    return identity_of({"tokens": tokens, **rest})


def _same_or_grown(then: Record, now: Record, files: Files, files_then: Files) -> bool:
    def settings(corpus: Record) -> Record:
        return {name: value for name, value in corpus.items() if name != "content"}

    if identity_of(settings(then)) != identity_of(settings(now)):
        return False
    if then["content"] == now["content"]:
        return True
    old, new = files_then.get(then["name"], {}), files.get(now["name"], {})
    return bool(old) and old.items() <= new.items()


def _earlier(outputs: Outputs, version: Version) -> Iterator[Version]:
    """What a version continues, and what that continues, as far as it is there and can be opened."""
    while identity := version.record.get(CONTINUES):
        artefact = find_version(outputs, "tokens", identity)
        if artefact is None:
            return
        version = Version.read(artefact.path)
        yield version


def _all(outputs: Outputs) -> Iterator[Version]:
    for path in sorted((outputs.root / "artefacts" / "tokens").glob("[!.]*")):
        try:
            yield Version.read(path)
        except PathError:
            continue
