"""The commands that keep what was published: `verify` reads it all again, `repair` makes damaged shards again."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resources.workspace import Workspace
    from sae_pipeline.activations.remaking import Recipe
    from sae_pipeline.store import Artefact, Damage, Outputs
    from sae_pipeline.store.verify import Verified
    from sae_pipeline.subjects import Subject

_MOST: Final = 6  # files or folders named on one line


def verify(options: argparse.Namespace) -> int:
    """Read everything again and name each damage. Exit status: 0 all is whole, 1 something is not."""
    from resources.workspace import outputs_dir
    from sae_pipeline.store import Console, Outputs
    from sae_pipeline.store.verify import verify as read_again

    outputs = Outputs(outputs_dir())
    study = None if options.study is None else _study_name(options.study, outputs)
    tell: Callable[[Damage], None] = (lambda damage: None) if options.json else (lambda damage: _tell(damage, outputs))
    found = read_again(outputs, study, progress=Console("verify"), found=tell)
    print(json.dumps(_as_dict(found, outputs), indent=2) if options.json else _summary(found, outputs, options.study))
    return 1 if found.damage else 0


def _study_name(given: str, outputs: Outputs) -> str:
    """The study that has results here, by its own name or by that of its file."""
    from resources.workspace import study_file
    from sae_pipeline.store import PipelineError
    from sae_pipeline.study import load_study

    overrides = os.environ.get("SAE_SET", "").splitlines()
    named = given in outputs.studies() and not overrides  # its file is not needed for what it made
    study = given if named else load_study(study_file(given), overrides).study
    if study not in outputs.studies():
        raise PipelineError(f"study {study!r} has no results in {outputs.root}; make them: sae-pipeline run {given}")
    return study


def _tell(damage: Damage, outputs: Outputs) -> None:
    print(f"{damage.kind}: {_where(damage.path, outputs)}: {damage.cause.removeprefix('missing: ')}", flush=True)


def _where(path: Path, outputs: Outputs) -> str:
    return path.relative_to(outputs.root).as_posix()


def _summary(found: Verified, outputs: Outputs, study: str | None) -> str:
    from sae_pipeline.store.disk import human_bytes

    lines = [f"note: {note}" for note in found.notes]
    for remade in found.remade:
        figures = f"differs by up to {max(remade.record['max_difference'], remade.record['moments_difference']):.2g}"
        place = f"{_where(remade.artefact, outputs)}, shard {remade.shard} of {remade.array}"
        lines.append(f"remade: {place}: {figures}, accepted were {remade.record['tolerance']:.2g}")
    artefacts = {damage.artefact for damage in found.damage}
    read = f"{found.artefacts} artefacts, {human_bytes(found.n_bytes)} read"
    if not found.damage:
        return "\n".join([*lines, f"{read}: all is whole"])
    lines.append(f"{read}: {len(found.damage)} files damaged, in {len(artefacts)} folders")
    return "\n".join([*lines, f"to mend them: sae-pipeline repair {study or 'STUDY'}"])


def _as_dict(found: Verified, outputs: Outputs) -> dict[str, object]:
    return {
        "whole": not found.damage,
        "artefacts": found.artefacts,
        "n_bytes": found.n_bytes,
        "damage": [
            {"artefact": _where(item.artefact, outputs), "file": item.file, "kind": item.kind, "cause": item.cause}
            for item in found.damage
        ],
        "remade": [
            {"artefact": _where(item.artefact, outputs), "array": item.array, "shard": item.shard, **item.record}
            for item in found.remade
        ],
        "notes": list(found.notes),
    }


def repair(options: argparse.Namespace) -> int:
    """Verify a study and mend what is damaged. Exit status: 0 nothing damaged is left, 1 something is."""
    from resources.workspace import StudyGraph
    from sae_pipeline.store import Console
    from sae_pipeline.store.verify import verify as read_again

    work = StudyGraph.load().workspace
    name = _study_name(os.environ.get("SAE_STUDY", "demo"), work.outputs)
    found = read_again(work.outputs, name, progress=Console("verify"), found=lambda damage: _tell(damage, work.outputs))
    mending = _Mending(work, options.tolerance, discard=options.discard)
    by_folder: dict[Path, list[Damage]] = {}
    for damage in found.damage:
        by_folder.setdefault(damage.artefact, []).append(damage)
    left = sum(not mending.mend(folder, damage) for folder, damage in by_folder.items())
    print(f"{left} damaged folders are left" if left else "nothing damaged is left")
    return 1 if left else 0


class _Mending:
    """Mends the artefacts of one study; the subject is loaded once, when the first shard has to be made again."""

    def __init__(self, work: Workspace, tolerance: float | None, *, discard: bool) -> None:
        self._work, self._outputs, self._tolerance, self._discard = work, work.outputs, tolerance, discard

    def mend(self, folder: Path, damage: list[Damage]) -> bool:
        """Whether nothing damaged is left in the folder."""
        where = _where(folder, self._outputs)
        if "artefacts" not in folder.relative_to(self._outputs.root).parts[:1]:
            return False  # pointers: what to do was said with the damage
        if not (folder / "artefact.json").is_file():
            print(f"{where}: the next run makes it")
            return False
        foreign = [item for item in damage if item.kind == "foreign"]
        for item in foreign:
            print(f"{_where(item.path, self._outputs)}: move it away by hand")
        broken = [item for item in damage if item.kind != "foreign"]
        shards = sorted({item.shard[1] for item in broken if item.shard and item.shard[0] == "acts"})
        if broken and all(item.shard and item.shard[0] == "acts" for item in broken):
            return self._make_shards(folder, shards, broken) and not foreign
        return (not broken or self._set_aside(folder, broken)) and not foreign

    def _make_shards(self, folder: Path, shards: list[int], damage: list[Damage]) -> bool:
        """Mend an artefact whose damage is of shards of activations alone."""
        from sae_pipeline.activations.repair import repair_shards
        from sae_pipeline.store import Artefact, Console, PipelineError

        refused = set[int]()
        try:
            artefact = Artefact.open(folder)
            recipe, progress = partial(self._recipe, artefact), Console("repair")
            for done in repair_shards(
                self._outputs, artefact, shards, recipe, tolerance=self._tolerance, progress=progress
            ):
                refused |= {done.shard} if done.how == "refused" else set()
                also = f"; also in {_some(path.name for path in done.also)}" if done.also else ""
                print(f"{done.how}: {_where(folder, self._outputs)}, shard {done.shard}: {done.says}{also}", flush=True)
        except PipelineError as error:  # what it is made from is missing, or somebody is at work: it may do later
            print(f"refused: {error}", file=sys.stderr)
            return False
        return not refused or self._set_aside(
            folder, [item for item in damage if item.shard and item.shard[1] in refused]
        )

    def _recipe(self, artefact: Artefact) -> Recipe:
        from sae_pipeline.activations.remaking import Recipe
        from sae_pipeline.planning.continuation import find_version
        from sae_pipeline.store import PipelineError
        from sae_pipeline.tokens import Tokens

        made, study = artefact.lineage, self._work.study
        same = ("stage", "version", "config")
        nodes = self._work.lineage.of_asset("activations")
        if not any([node.record[key] for key in same] == [made.get(key) for key in same] for node in nodes):
            raise PipelineError(
                f"{artefact.path}: study {study.study} asks for other activations now, so it does not say how these "
                "were made; name the study that made them, or --set what has changed since"
            )
        tokens = find_version(self._outputs, "tokens", made["inputs"]["tokens"])
        if tokens is None:
            raise PipelineError(
                f"{artefact.path}: the tokens it was made from are damaged or gone; make them again first"
            )
        return Recipe(self._subject, Tokens.open(tokens), study.activations, study.subject.dtype)

    @cached_property
    def _subject(self) -> Subject:
        from sae_pipeline.subjects import load_subject

        subject = self._work.study.subject
        return load_subject(subject, root=self._work.root, device=subject.device)

    def _set_aside(self, folder: Path, damage: list[Damage]) -> bool:
        """Move an artefact that cannot be mended out of the way, if that was asked for; else say what to do."""
        from sae_pipeline.store import Busy
        from sae_pipeline.store.collect import set_aside
        from sae_pipeline.store.verify import made_from

        users = [_where(path, self._outputs) for path in made_from(self._outputs, folder)]
        print(f"{_where(folder, self._outputs)}: cannot be mended in place ({_some(item.file for item in damage)})")
        if users:
            print(f"  made from it, and without it of use only where it is not read: {_some(users)}")
        if not self._discard:
            print("  --discard moves it to the trash, and the next run makes it again")
            return False
        try:
            moved = set_aside(self._outputs, folder)
        except Busy as error:
            print(f"  {error}", file=sys.stderr)
            return False
        except FileNotFoundError:  # a collection was faster
            return True
        print(f"  moved to {_where(moved, self._outputs)}; the next run makes it again")
        return True


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_MOST]) + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")
