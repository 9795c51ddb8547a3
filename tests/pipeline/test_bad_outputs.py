"""Folders, disks and earlier results that a run cannot work with: named before anything is made, and left alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resources.workspace import Workspace
from sae_pipeline.planning.plan import make_plan
from sae_pipeline.planning.preflight import bytes_to_make, preflight
from sae_pipeline.store import Draft
from sae_pipeline.store.atomic import seal
from sae_pipeline.store.progress import human
from sae_pipeline.study import load_study
from tests.pipeline.front_door import World, assert_refused, enter

SITE, KEY = "tiny.1.resid_post", "topk-n16-k4"
CHECKPOINT = "checkpoint.safetensors"
Spoil = Callable[[World], list[str]]


def _work(world: World) -> Workspace:
    return Workspace(load_study(world.study), world.folder, world.outputs)


def _draft(world: World, name: str) -> Draft:
    """An attempt at exactly what the study asks for."""
    work = _work(world)
    node, path = work.lineage[name], work.directory(work.lineage[name])
    return Draft.open(path, stage=node.stage, key=node.key, identity=node.identity, lineage=dict(node.record))


def _publish(world: World, name: str) -> Path:
    with _draft(world, name) as draft:
        draft.write_json("layout.json", {"context": 16})
        return draft.publish({}).path


def _reseal(path: Path, **changes: Any) -> None:
    """Rewrite a sealed file as a later version of this project would."""
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_bytes(seal(document | changes))


def _newer_artefact(world: World) -> list[str]:
    _reseal(_publish(world, "tokens") / "artefact.json", format=2)
    return []


def _changed_record(world: World) -> list[str]:
    path = _publish(world, "tokens") / "artefact.json"
    path.write_text(path.read_text().replace('"context"', '"kontext"').replace("summary", "summery"))
    return []


def _changed_file(world: World) -> list[str]:
    (_publish(world, f"dataset/{SITE}") / "layout.json").write_text('{\n  "context": 17\n}\n')
    return []


def _lost_file(world: World) -> list[str]:
    (_publish(world, f"evaluation_set/{SITE}") / "layout.json").unlink()
    return []


def _newer_draft(world: World) -> list[str]:
    with _draft(world, f"activations/{SITE}") as draft:
        _reseal(draft.path / "draft.json", format=2)
    return []


def _torn_draft(world: World) -> list[str]:
    with _draft(world, "tokens") as draft:
        (draft.path / "draft.json").write_text('{"checksum": ')
    return []


def _checkpoint(version: str | None) -> Spoil:
    def spoil(world: World) -> list[str]:
        with _draft(world, f"autoencoder/{SITE}/{KEY}") as draft:
            path = draft.path / CHECKPOINT
        if version is None:
            path.write_bytes(b"\x10")
        else:
            save_file({"step": torch.zeros(1)}, path, metadata={"version": version, "record": "{}"})
        return []

    return spoil


def _busy(world: World) -> list[str]:
    """As if the process that started the tests were at work on it."""
    with _draft(world, "tokens") as draft:
        lock = draft.path / ".lock"
    lock.write_text(str(os.getppid()))
    return []


def _pointers(text: str) -> Spoil:
    def spoil(world: World) -> list[str]:
        (world.outputs / "tiny" / "current.json").write_text(text)
        return []

    return spoil


def _best(text: str) -> Spoil:
    def spoil(world: World) -> list[str]:
        (world.outputs / "tiny" / "best.json").write_text(text)
        return []

    return spoil


def _in_place_of(name: str) -> Spoil:
    """A file where a folder belongs."""

    def spoil(world: World) -> list[str]:
        shutil.rmtree(world.outputs / name)
        (world.outputs / name).write_text("a note")
        return []

    return spoil


GONE = json.dumps({f"{SITE}/{KEY}": {"artefact": "artefacts/autoencoders/gone-0123456789ab", "history": []}})

# name: (what is spoilt; what the message names; what it says to do)
BAD: dict[str, tuple[Spoil, str, str]] = {
    "outputs are a file": (_in_place_of(""), "world/outputs is not a folder", "choose another folder with --outputs"),
    "artefacts are a file": (_in_place_of("artefacts"), "outputs/artefacts is not a folder", "move it away"),
    "the study's folder is a file": (_in_place_of("tiny"), "outputs/tiny is not a folder", "move it away"),
    "pointers that are no JSON": (_pointers('{"tokens": '), "tiny/current.json: is not JSON", "move it away and run"),
    "pointers that are no mapping": (_pointers("[1, 2]"), "current.json: does not map nodes", "move it away and run"),
    "pointers that point nowhere": (_pointers('{"tokens": 3}'), "current.json: does not map nodes", "move it away"),
    "pointers of a newer version": (_pointers('{"format": 2}'), "current.json: format 2", "upgrade sae-pipeline"),
    "champions that are no JSON": (_best("{"), "tiny/best.json: is not JSON", "best.json away and run again"),
    "champions that are no mapping": (_best("[]"), "best.json: does not map", "best.json away and run again"),
    "a champion that is gone": (_best(GONE), "autoencoders/gone-0123456789ab", "best.json away and run again"),
    "an artefact of a newer version": (_newer_artefact, "artefact.json: format 2", "upgrade sae-pipeline"),
    "an artefact whose record was changed": (_changed_record, "artefact.json: its checksum", "away and run again"),
    "an artefact whose file was changed": (_changed_file, "layout.json: its content is not", "away and run again"),
    "an artefact whose file is lost": (_lost_file, "layout.json: missing", "away and run again, it is made anew"),
    "a draft of a newer version": (_newer_draft, "draft.json: format 2", "upgrade sae-pipeline"),
    "a torn draft": (_torn_draft, "draft.json: is not JSON", "away and run again, it is made anew"),
    "a checkpoint of a newer version": (_checkpoint("2"), f"{CHECKPOINT}: format 2", "upgrade sae-pipeline"),
    "a torn checkpoint": (_checkpoint(None), f"{CHECKPOINT}: cannot be read", "delete it to start over"),
    "a folder in use": (_busy, f"process {os.getppid()} is working on it", "wait for it to end or stop it"),
    "more than any disk holds": (
        lambda world: ["tokens.train=4000T"],
        "the disk of",
        "free some, lower the budgets",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_lies_there_and_cannot_be_used(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, names, says = BAD[name]
    assert_refused(world, capsys, world.run(*spoil(world)), names=names, says=says)


@pytest.mark.parametrize(
    "name", ["pointers that are no JSON", "pointers of a newer version", "the study's folder is a file"]
)
def test_why_says_the_same(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, _, _ = BAD[name]
    spoil(world)
    argv = ["why", "tokens", "--study", str(world.study), "--outputs", str(world.outputs)]
    says = {"pointers of a newer version": "upgrade", "the study's folder is a file": "choose another output folder"}
    assert_refused(world, capsys, argv, names="current.json", says=says.get(name, "move it away"))


def test_outputs_below_a_file(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*world.run(), "--outputs", str(world.study / "results")]
    assert_refused(world, capsys, argv, names="study.yaml is not a folder", says="choose another folder")


def test_a_disk_with_too_little_left(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for every artefact, and none for the checkpoints beside them."""
    work = _work(world)
    plan = make_plan(work.study, work.lineage.facts, flops_per_s=1.0)
    needed = bytes_to_make(work.lineage, plan, list(work.lineage))
    assert plan.bytes_ < needed < 2 * plan.bytes_
    usage, free = shutil.disk_usage(world.folder), [needed]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    preflight(work.lineage, work.outputs, work.pointers, root=world.folder)
    free[0] = plan.bytes_
    assert_refused(world, capsys, world.run(), names=f"{human(plan.bytes_)}B are free", says="with --outputs")


@pytest.mark.parametrize("place", ["", "artefacts", "tiny"])
def test_folders_that_are_read_only(
    place: str, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the system's answer is replaced; see below for a real one."""
    locked, may = world.outputs / place, os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: may(path, mode) and not (Path(path) == locked and mode & os.W_OK)
    )
    assert_refused(world, capsys, world.run(), names=f"{locked} is read-only", says="change its permissions, or choose")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.outputs.chmod(0o555)
    try:
        assert_refused(world, capsys, world.run(), names="outputs is read-only", says="change its permissions")
    finally:
        world.outputs.chmod(0o755)


def test_a_dagster_home_that_is_a_file(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(world.study))
    assert_refused(world, capsys, world.run(), names=f"DAGSTER_HOME is {world.study}", says="set it to another folder")


def test_a_dagster_home_may_be_relative(
    world: World, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("DAGSTER_HOME", home.name)
    assert enter(["plan", str(world.study)]) == 0
    assert os.environ["DAGSTER_HOME"] == str(home)
