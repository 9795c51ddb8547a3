"""The smoke study behind a real `dagster dev`: sensor, schedule, backfill and Terminate, as a person uses them."""

import json

import safetensors

from assets.retraining import TICK
from sae_pipeline.dataset import Dataset
from sae_pipeline.store import Draft
from sae_pipeline.training import Member, train
from tests.pipeline.daemon import ENDED
from tests.pipeline.poison import plant

ADDED = "topk-n64-k4"
LONG = "topk-n1024-k8"
WEIGHTS = "autoencoder.safetensors"


def test_an_autoencoder_added_to_the_study_file_can_be_made(night):
    """Sensor, dynamic partition, run: nothing is reloaded by hand."""
    daemon = night.daemon
    daemon.turn_on("sensor", "follow_study")
    daemon.wait("first partitions", lambda: len(daemon.partitions("smoke/autoencoder")) == 7)
    night.add(recipe="topk", n=64, k=4)
    daemon.wait("new partition", lambda: ADDED in daemon.partitions("smoke/autoencoder"))
    backfill = daemon.backfill("smoke", ["autoencoder"], [night.cell(ADDED)])
    assert daemon.backfill_end(backfill) == "COMPLETED_SUCCESS"
    assert night.work.find(f"autoencoder/{night.site}/{ADDED}") is not None
    assert night.work.find(f"codes/{night.site}/{ADDED}") is None


def test_the_schedule_requests_exactly_what_is_stale(night):
    """Of eight autoencoders the new one lacks its evaluation; then the table, the laws and the report are stale."""
    daemon = night.daemon
    before = {node.name for node in night.work.stale()}
    assert {name.split("/")[-1] for name in before if name.startswith(("codes", "eval_", "champion"))} >= {ADDED}
    daemon.turn_on("schedule", "retrain_stale")

    def chain():
        ticks = [run for run in daemon.runs() if any(tag["key"] == TICK for tag in run["tags"])]
        return ticks if any(run["jobName"] == "fit" and run["status"] in ENDED for run in ticks) else None

    runs = daemon.wait("a tick", chain)
    daemon.turn_off_schedule("retrain_stale")
    made = {run["jobName"]: run for run in runs if run["jobName"] != "retrain_stale"}
    assert set(made) == {"evaluate", "fit"}
    assert all(run["status"] == "SUCCESS" for run in made.values())
    tags = {tag["key"]: tag["value"] for tag in made["evaluate"]["tags"]}
    assert tags["dagster/asset_partition_range_start"] == night.cell(ADDED)
    assert tags["dagster/asset_partition_range_end"] == night.cell(ADDED)
    assert night.work.stale() == []


def test_a_backfill_of_one_metric_makes_what_is_missing(night):
    keys = ["topk-n128-k4", "topk-n512-k8"]
    names = [f"eval_downstream/{night.site}/{key}" for key in keys]
    night.forget(*names)
    cells = [night.cell(node.name.split("/")[2]) for node in night.work.lineage.of_asset("eval_downstream")]
    backfill = night.daemon.backfill("smoke", ["eval_downstream"], cells)
    assert night.daemon.backfill_end(backfill) == "COMPLETED_SUCCESS"
    assert all(night.work.find(name) is not None for name in names)


def test_a_backfill_over_a_spoiled_shard_stops_at_its_gate(night):
    site = night.site
    night.forget(f"dataset/{site}")
    plant(night.work, site, "nan")
    backfill = night.daemon.backfill("smoke", ["activations", "dataset"], [site])
    assert night.daemon.backfill_end(backfill) == "COMPLETED_FAILED"
    assert night.work.find(f"activations/{site}") is None
    assert night.work.find(f"dataset/{site}") is None
    mended = night.daemon.backfill("smoke", ["activations", "dataset"], [site])
    assert night.daemon.backfill_end(mended) == "COMPLETED_SUCCESS"


def test_terminate_stops_a_training_that_goes_on_exactly(night, tmp_path):
    """Checkpoint, CANCELED, never SUCCESS; then the same partition ends with the bits of an undisturbed run."""
    daemon = night.daemon
    night.add(recipe="topk", n=1024, k=8, tokens="1M")
    daemon.wait("new partition", lambda: LONG in daemon.partitions("smoke/autoencoder"))
    name = f"autoencoder/{night.site}/{LONG}"
    folder = night.work.directory(night.work.lineage[name])
    backfill = daemon.backfill("smoke", ["autoencoder"], [night.cell(LONG)])
    daemon.wait("a checkpoint", (folder / "checkpoint.safetensors").exists)
    run = daemon.runs(**{"dagster/backfill": backfill})[0]
    daemon.terminate(run["runId"])
    status = daemon.wait(
        "the end",
        lambda: next(
            (found["status"] for found in daemon.runs(**{"dagster/backfill": backfill}) if found["status"] in ENDED),
            None,
        ),
    )
    assert status == "CANCELED"
    assert night.work.find(name) is None
    step = _step(folder / "checkpoint.safetensors")
    assert 0 < step < 1_000_000 // 512
    again = daemon.backfill("smoke", ["autoencoder"], [night.cell(LONG)])
    assert daemon.backfill_end(again) == "COMPLETED_SUCCESS"
    assert night.work.find(name).file(WEIGHTS).read_bytes() == _undisturbed(night.work, name, tmp_path / "draft")


def _step(path):
    with safetensors.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["record"])["step"]


def _undisturbed(work, name, folder):
    """The same autoencoder trained in one piece, without Dagster."""
    node, site = work.lineage[name], name.split("/")[1]
    dataset = Dataset.open(work.artefact(f"dataset/{site}"), work.artefact(f"activations/{site}"))
    with Draft.open(folder, stage=node.stage, key=node.key, identity=node.identity, lineage={}) as draft:
        assert train({node.key: Member(work.lineage.spec(node), draft)}, dataset)[node.key].status == "finished"
        return draft.file(WEIGHTS).read_bytes()
