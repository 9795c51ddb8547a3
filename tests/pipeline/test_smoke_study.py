"""What a finished study must look like: everything published, and the figures make sense."""

import json

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from assets.partitions import dynamic_set, partition_key
from assets.publishing import asset_key
from sae_pipeline.planning.plan import make_plan
from sae_pipeline.planning.staleness import explain, stale


def test_every_node_is_published_and_current(smoke):
    work = smoke.graph.workspace
    assert len(list(work.lineage)) > 40
    assert stale(work.lineage, work.outputs, work.pointers) == []


def test_a_second_run_makes_nothing(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.graph.outputs_dir.rglob("*") if path.is_file()}
    runs = smoke.instance.get_runs_count()
    assert smoke.run() is None
    assert "nothing to do" in capsys.readouterr().err
    assert smoke.instance.get_runs_count() == runs
    assert {path: path.stat().st_mtime_ns for path in smoke.graph.outputs_dir.rglob("*") if path.is_file()} == before


def test_dagster_knows_every_partition_with_its_identity(smoke):
    for node in smoke.graph.workspace.lineage:
        path = node.name.partition("/")[2]
        records = smoke.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=asset_key(smoke.graph, node.asset),
                asset_partitions=[partition_key(path)] if path else None,
            ),
            limit=2,
        ).records
        assert len(records) == 1, f"{node.name} has {len(records)} materialisations"
        assert records[0].asset_materialization.tags["dagster/data_version"] == node.identity


def test_the_autoencoders_are_dynamic_partitions(smoke):
    keys = smoke.instance.get_dynamic_partitions(dynamic_set("smoke"))
    site = smoke.graph.sites[0]
    assert list(keys) == [node.name.split("/")[2] for node in smoke.graph.workspace.lineage.of_asset("autoencoder")]
    assert all(f"autoencoder/{site}/{key}" in smoke.graph.workspace.lineage.nodes for key in keys)


@pytest.fixture(scope="module")
def metrics(smoke):
    table = smoke.graph.workspace.artefact(f"evaluation_table/{smoke.graph.sites[0]}")
    frame = pd.read_parquet(table.file("metrics.parquet"))
    wide = frame.assign(name=frame["metric"] + "/" + frame["variant"]).pivot(
        index="autoencoder", columns="name", values="value"
    )
    saes = pd.read_parquet(table.file("saes.parquet")).set_index("autoencoder")
    return wide.join(saes[["recipe", "n", "k"]])


def test_nmse_falls_in_n_and_k(metrics):
    topk = metrics[metrics["recipe"] == "topk"]
    by_n = [group.sort_values("n")["nmse/all"].diff().dropna() for _, group in topk.groupby("k")]
    by_k = [group.sort_values("k")["nmse/all"].diff().dropna() for _, group in topk.groupby("n")]
    differences = np.concatenate([*by_n, *by_k])
    assert len(differences) == 7
    assert (differences < 0).mean() >= 0.9


def test_splicing_sense(metrics):
    assert (metrics["kl/control_untouched"] == 0).all()
    assert (metrics["dce/control_untouched"] == 0).all()
    assert (metrics["kl/control_round_trip"].abs() < 1e-6).all()
    assert (metrics["dce/all"] > 0).all()
    assert metrics["loss_recovered/mean"].between(0, 1, inclusive="neither").all()


def test_explained_variance_is_the_complement_of_nmse(metrics):
    np.testing.assert_allclose(metrics["explained_variance/all"], 1 - metrics["nmse/all"], atol=1e-12)


def test_l0_never_exceeds_k(smoke):
    from sae_pipeline.evaluation import CodesCache

    work = smoke.graph.workspace
    for node in work.lineage.of_asset("codes"):
        spec = work.lineage.spec(node)
        l0_r = CodesCache.open(work.artefact(node.name)).scalars("l0")
        assert l0_r.max() <= (spec.k or spec.n)


def test_auxk_brings_dead_latents_back(smoke):
    """Latents die early in the smoke study and fewer are dead at its end: AuxK acts."""
    work = smoke.graph.workspace
    revived = []
    for node in work.lineage.of_asset("autoencoder"):
        log = pd.read_parquet(work.artefact(node.name).file("training.parquet"))
        if work.lineage.spec(node).auxk_k and log["dead"].max() > 0.02:
            revived.append(log["dead"].max() - log["dead"].iloc[-1])
    assert len(revived) >= 3
    assert max(revived) > 0.01


def test_what_people_read_lies_in_the_study_folder(smoke):
    folder = smoke.graph.outputs_dir / "smoke"
    site = smoke.graph.sites[0]
    for name in ("summary.json", "best.json", "current.json", "report/index.html"):
        assert (folder / name).is_file(), name
    for name in ("saes", "metrics", "unit_stats", "curves", "latent_stats"):
        assert len(pd.read_parquet(folder / "evaluation" / site / f"{name}.parquet"))
    assert (folder / "scaling" / site / "refusals.parquet").is_file()
    assert json.loads((folder / "summary.json").read_text())["autoencoders"] == 7
    assert len(json.loads((folder / "best.json").read_text())) == 7


def test_why_names_the_field_that_changed(smoke):
    changed = smoke.with_settings("dataset.sample_rows=2048").graph.workspace
    node = changed.lineage[f"dataset/{smoke.graph.sites[0]}"]
    status = explain(node, changed.outputs, changed.pointers)
    assert not status.current
    assert status.reasons == ("config.sample_rows: 4096 → 2048",)
    assert explain(changed.lineage["tokens"], changed.outputs, changed.pointers).current


def test_the_plan_tells_the_bytes_on_disk(smoke):
    """Given what it cannot know: the rows of whole documents, and no code whose width a penalty decides."""
    work, site = smoke.graph.workspace, smoke.graph.sites[0]
    rows = work.artefact(f"evaluation_set/{site}").summary["n_rows"]
    topk = smoke.with_settings(
        f"evaluation.tokens={rows}", "autoencoders.grids=[{recipe: topk, n: [128, 256, 512], k: [4, 8]}]"
    )
    planned = make_plan(topk.graph.study, work.lineage.facts, flops_per_s=1e9).bytes_
    folders = [work.directory(node) for node in work.lineage if "relu" not in node.name]
    on_disk = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    assert planned == pytest.approx(on_disk, rel=0.1)
