"""Kill -9 in every stage, then the same command: it completes, bit-equal to a run that nobody disturbed."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import dagster as dg
import pytest

from assets.leases import close_dead_runs, lease
from assets.publishing import asset_key
from resources import StudyGraph
from tests.pipeline import kills
from tests.pipeline.likeness import differences
from tests.pipeline.moments import STAGE_OF


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the campaign took place. A process of its own forks the trials: this one has threads."""
    folder = tmp_path_factory.mktemp("kills")
    subprocess.run([sys.executable, "-m", "tests.pipeline.kills", str(folder)], cwd=kills.CHECKOUT, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def trials(record):
    return record["trials"]


def test_every_moment_struck_and_every_stage_was_hit(trials):
    struck = [trial["fired"] for trial in trials[:-1]]
    missed = [moment for moment in kills.CAMPAIGN if asdict(moment) not in struck]
    assert missed == [], trials[-1]["log"]
    stages = Counter(STAGE_OF[fired["asset"]] for fired in struck)
    assert set(stages) == {"tokens", "activations", "dataset", "autoencoders", "evaluation", "scaling"}
    assert min(stages.values()) >= 3, stages


def test_the_same_command_completes_bit_equal(folder, record):
    last, whole = record["trials"][-1], record["whole"]
    assert last["status"] == 0, last["log"]
    assert whole["status"] == 0, whole["log"]
    assert differences(folder / "whole" / "outputs", folder / "killed" / "outputs") == []


def test_training_went_on_from_a_checkpoint(record):
    trials = record["trials"]
    at = {(trial["fired"] or {}).get("kind"): place for place, trial in enumerate(trials)}
    assert len(trials[at["checkpoint"] - 1]["state"]["checkpoints"]) == 2
    all_steps = record["whole"]["counts"]["autoencoder"]["step"]
    assert 0 < trials[at["unlink"]]["counts"]["autoencoder"]["step"] < 0.6 * all_steps


def test_a_kill_between_publish_and_pointer_heals_without_making_it_again(trials):
    last = trials[-1]["state"]
    cut = [trial for trial in trials[:-1] if (trial["fired"]["kind"], trial["fired"]["phase"]) == ("artefact", "after")]
    assert len(cut) >= 4
    for trial in cut:
        state = trial["state"]
        orphans = set(state["published"]) - set(state["pointers"].values())
        assert len(orphans) == 1, trial["fired"]
        (orphan,) = orphans
        assert last["published"][orphan] == state["published"][orphan], "made again"
        assert orphan in last["pointers"].values()


def test_what_killed_runs_leave_behind_blocks_nothing(folder, trials):
    left = {name: sum(len(trial["state"][name]) for trial in trials) for name in trials[0]["state"]}
    assert min(left["temporaries"], left["drafts"], left["locked"]) > 0
    assert any("/c/" in name for trial in trials for name in trial["state"]["temporaries"])
    assert trials[-1]["state"]["drafts"] == []
    with dg.DagsterInstance.from_config(str(folder / "killed" / "home")) as instance:
        status = Counter(run.status for run in instance.get_runs())
        assert set(status) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED}
        assert status[dg.DagsterRunStatus.CANCELED] >= len(kills.CAMPAIGN) - 1  # one may die after its run's end
        assert not instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
        assert list((folder / "killed" / "home" / "leases").iterdir()) == []


def test_dagster_knows_every_artefact_of_the_killed_runs(folder):
    graph = StudyGraph.read(kills.STUDY, kills.SETTINGS, folder / "killed" / "outputs")
    with dg.DagsterInstance.from_config(str(folder / "killed" / "home")) as instance:
        for asset in STAGE_OF:
            found = instance.fetch_materializations(asset_key(graph, asset), limit=100).records
            versions = {record.asset_materialization.tags["dagster/data_version"] for record in found}
            assert versions == {node.identity for node in graph.workspace.lineage.of_asset(asset)}


def test_differences_are_seen_and_times_are_not(tmp_path):
    for name, made, value in (("a", "2001", 1.5), ("b", "2002", 1.5), ("c", "2001", 1.25)):
        (tmp_path / name).mkdir()
        document = {"checksum": name, "created_at": made, "summary": {"train_s": len(made), "nmse": value}}
        (tmp_path / name / "artefact.json").write_text(json.dumps(document))
        (tmp_path / name / ".lock").write_text(name)
    assert differences(tmp_path / "a", tmp_path / "b") == []
    assert differences(tmp_path / "a", tmp_path / "c") == ["artefact.json: differs"]
    (tmp_path / "b" / "weights").write_bytes(b"\0")
    assert differences(tmp_path / "a", tmp_path / "b") == [f"weights: only in {tmp_path / 'b'}"]


def test_runs_of_the_living_are_left_alone(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        with pytest.raises(RuntimeError, match="died"), lease(instance) as tags:
            running = instance.add_run(_started(tags))
            close_dead_runs(instance)
            assert instance.get_run_by_id(running.run_id).status == dg.DagsterRunStatus.STARTED
            raise RuntimeError("died")
        close_dead_runs(instance)
        assert instance.get_run_by_id(running.run_id).status == dg.DagsterRunStatus.CANCELED
        assert os.listdir(tmp_path / "leases") == []


def _started(tags):
    return dg.DagsterRun(job_name="train", status=dg.DagsterRunStatus.STARTED, tags=tags)
