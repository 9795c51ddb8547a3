"""The commands that look after a place: `status`, `doctor` and `gc`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resources.workspace import StudyGraph
    from sae_pipeline.doctor.check import Check
    from sae_pipeline.planning.status import LastRun
    from sae_pipeline.store import Outputs
    from sae_pipeline.store.garbage import Garbage, Policy, Survey

CHECKOUT: Final = Path(__file__).resolve().parent.parent

STALE: Final = 3
"""Exit status of `status` when something is stale, rejected, at work or was never made."""


def status(options: argparse.Namespace) -> int:
    """Print how a study stands; locks nothing and can be asked while a run goes on."""
    from resources.workspace import StudyGraph
    from sae_pipeline.planning.status import study_status
    from sae_pipeline.planning.status_table import render_status

    graph = StudyGraph.load()
    work = graph.workspace
    found = study_status(work.lineage, work.outputs, work.pointers, _last_run(graph))
    print(json.dumps(found.as_dict(), indent=2) if options.json else render_status(found))
    return 0 if found.current else STALE


def _last_run(graph: StudyGraph) -> LastRun | None:
    from assets.history import existing_instance, last_run

    try:
        with existing_instance() as instance:
            return last_run(instance, graph) if instance is not None else None
    except Exception as error:  # Dagster raises many kinds, and what lies in outputs is worth telling without it
        print(f"the Dagster home cannot be read: {error}", file=sys.stderr)
        return None


def doctor(options: argparse.Namespace) -> int:
    """Print what is well and what is not on this machine, a line each with what to do."""
    from sae_pipeline.doctor.check import examine

    levels = []
    for check in examine(_checks(options.studies)):
        print(check, flush=True)
        levels.append(check.level)
    failed, warned = levels.count("fail"), levels.count("warn")
    print(f"{failed} failed, {warned} to look at" if failed or warned else "all is well")
    return 1 if failed else 0


def _checks(studies: Iterable[str]) -> Iterator[tuple[str, Callable[[], Iterable[Check]]]]:
    """The checks by name. Each imports what it needs, so that a missing package costs no check but those it is for."""
    home = Path(os.environ["DAGSTER_HOME"])
    yield "python", partial(_look, "packages", "python_version", CHECKOUT)
    yield "packages", partial(_look, "packages", "requirements", CHECKOUT)
    yield "constraints", partial(_look, "packages", "constraints", CHECKOUT)
    yield "dagster", partial(_look, "packages", "dagster_release")
    yield "processor", partial(_look, "machine", "processor")
    yield "torch", partial(_look, "machine", "torch_devices")
    yield "memory", partial(_look, "machine", "memory")
    yield "disk", partial(_look_at_outputs, "disk")
    yield "disk", partial(_look, "folders", "disk", home)
    yield "publishing", partial(_look_at_outputs, "publishing")
    yield "locks", partial(_look_at_outputs, "file_locks")
    yield "dagster home", partial(_look, "folders", "dagster_home", home, os.environ)
    yield "daemon", _daemon
    yield "browser", partial(_look, "machine", "browser")
    for name in studies:
        yield name, partial(_hub, name)


def _look(module: str, function: str, *arguments: object) -> Iterator[Check]:
    yield from getattr(importlib.import_module(f"sae_pipeline.doctor.{module}"), function)(*arguments)


def _look_at_outputs(function: str) -> Iterator[Check]:
    from resources.workspace import outputs_dir

    yield from _look("folders", function, outputs_dir())


def _daemon() -> Iterator[Check]:
    from assets.history import daemon, existing_instance

    with existing_instance() as instance:
        yield from daemon(instance)


def _hub(name: str) -> Iterator[Check]:
    from resources.workspace import study_file
    from sae_pipeline.doctor.reach import hub
    from sae_pipeline.study import load_study

    yield from hub(load_study(study_file(name), os.environ.get("SAE_SET", "").splitlines()), CHECKOUT)


def gc(options: argparse.Namespace) -> int:
    """List what no study refers to; with `--delete` delete it. Exit status: 1 if something could not be deleted."""
    from resources.workspace import outputs_dir
    from sae_pipeline.store import Outputs, PipelineError
    from sae_pipeline.store.garbage import Policy, survey
    from sae_pipeline.study.quantities import parse_seconds

    outputs = Outputs(outputs_dir())
    try:
        policy = Policy(parse_seconds(options.older_than), drafts=options.drafts)
    except ValueError as error:
        raise PipelineError(f"--older-than: {error}") from None
    try:
        found = survey(outputs, policy)
        if found.resumable:
            policy = replace(policy, wanted=_asked_for(options.studies, outputs))
            found = survey(outputs, policy)
        if options.delete:
            return _delete(outputs, policy, options.older_than)
    except OSError as error:
        raise PipelineError(f"{error.filename}: {error.strerror}; gc needs to read and write all of outputs") from error
    _list(found.garbage, outputs.root)
    _kept(found, options.older_than)
    print("nothing was deleted; --delete deletes it" if found.garbage else "nothing to delete")
    return 0


def _delete(outputs: Outputs, policy: Policy, older_than: str) -> int:
    from sae_pipeline.store.collect import collect
    from sae_pipeline.store.garbage import survey

    done = collect(outputs, policy)
    _list(done.deleted, outputs.root)
    _kept(survey(outputs, policy), older_than)
    for item, why in done.failed:
        print(f"not deleted: {item.path}: {why}", file=sys.stderr)
    print("deleted" if done.deleted else "nothing to delete")
    return 1 if done.failed else 0


def _asked_for(names: Iterable[str], outputs: Outputs) -> Collection[str] | None:
    """Identities that studies ask for: those named, and those in studies/ that have results here.

    None, with the reason printed, if a study has results here and its file is not known.
    """
    from resources.workspace import StudyGraph, study_file
    from sae_pipeline.store import PipelineError

    overrides = os.environ.get("SAE_SET", "").splitlines()
    given = list(names)
    if not given and (overrides or "SAE_STUDY" in os.environ):
        given = [os.environ.get("SAE_STUDY", "demo")]
    graphs = [StudyGraph.read(study_file(name), overrides, outputs.root) for name in given]
    known = {graph.study.study: _identities(graph) for graph in graphs}
    for study in set(outputs.studies()) - set(known):
        with contextlib.suppress(PipelineError):
            graph = StudyGraph.read(study_file(study), (), outputs.root)
            known[graph.study.study] = _identities(graph)
    unknown = sorted(set(outputs.studies()) - set(known))
    if unknown:
        print(
            f"unfinished drafts are kept, since it is not known what {', '.join(unknown)} asks for: name its file "
            "after gc, delete its folder in outputs, or give --drafts",
            file=sys.stderr,
        )
        return None
    return {identity for found in known.values() for identity in found}


def _identities(graph: StudyGraph) -> set[str]:
    return {node.identity for node in graph.workspace.lineage}


def _list(garbage: Iterable[Garbage], root: Path) -> None:
    from sae_pipeline.store.disk import human_bytes

    items = list(garbage)
    for item in items:
        age = f"{item.age_s / 86400:.1f} d" if item.age_s >= 86400 else f"{item.age_s / 3600:.1f} h"
        print(f"{human_bytes(item.n_bytes):>9}{age:>10}  {item.path.relative_to(root)}  ({item.reason})")
    if items:
        print(f"{human_bytes(sum(item.n_bytes for item in items)):>9}{'':10}  in all, {len(items)} folders and files")


def _kept(found: Survey, older_than: str) -> None:
    from sae_pipeline.store.disk import human_bytes

    if found.young:
        size = human_bytes(sum(item.n_bytes for item in found.young))
        print(f"kept: {len(found.young)} that nothing refers to, {size}, for they are younger than {older_than}")
    if found.resumable:
        print(f"kept: {len(found.resumable)} unfinished that a study asks for (--drafts to give them up)")
    if found.in_use:
        print(f"kept: {len(found.in_use)} that a process is at work on")
    for note in found.notes:
        print(f"note: {note}")
