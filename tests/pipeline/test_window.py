"""Autoencoders trained on a window of the activations, through Dagster, killed at the worst moments."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest

from resources import StudyGraph
from sae_pipeline.store import Artefact
from tests.pipeline import kills, windowed
from tests.pipeline.likeness import differences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("window")
    subprocess.run([sys.executable, "-m", "tests.pipeline.windowed", str(folder)], cwd=kills.CHECKOUT, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def seen(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("retain", ["none", "window"])
def test_whatever_strikes_the_autoencoders_are_those_of_all(folder, seen, retain):
    assert seen["all"][-1]["status"] == 0, seen["all"][-1]["log"]
    assert seen[retain][-1]["status"] == 0, seen[retain][-1]["log"]
    struck = [trial["fired"] for trial in seen[retain][:-1]]
    assert all(asdict(moment) in struck for moment in windowed.MOMENTS[retain])
    for stage in ("tokens", "dataset", "autoencoders"):
        ours, theirs = (folder / name / "outputs" / "artefacts" / stage for name in ("all", retain))
        assert differences(ours, theirs) == []


@pytest.mark.parametrize("retain", ["none", "window"])
def test_the_disk_never_holds_more_than_the_window(seen, retain):
    most = windowed.MOST[retain]
    for trial in seen[retain]:
        n_bytes, committed = trial["window"]
        assert n_bytes <= most * windowed.SHARD_BYTES and committed <= most, trial["fired"]
    assert max(trial["window"][0] for trial in seen[retain]) > (most - 2) * windowed.SHARD_BYTES  # and makes use of it
    assert seen[retain][-1]["window"] == ([0, 0] if retain == "none" else [9 * windowed.SHARD_BYTES, 9])


def test_what_is_published_is_the_prefix_and_whole(folder):
    for retain, kept in (("all", windowed.N_SHARDS), ("none", windowed.N_PINNED)):
        graph = StudyGraph.read(kills.STUDY, windowed.settings_of(retain), folder / retain / "outputs")
        artefact = graph.workspace.artefact(f"activations/{graph.sites[0]}")
        array = artefact.array("acts")
        assert (array.n_kept, array.n_shards) == (kept, windowed.N_SHARDS)
        assert artefact.summary["shards"] == kept and artefact.verify() == []
        assert Artefact.open(artefact.path).n_bytes >= kept * windowed.SHARD_BYTES
