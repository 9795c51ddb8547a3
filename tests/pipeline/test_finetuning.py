"""Autoencoders made from autoencoders: parents first, and nothing of a parent that is not published."""

import pandas as pd

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.planning.staleness import stale

PARENT = "relu-n128-l0.05"
CHILD = f"finetune-scale-of-{PARENT}"
TOPK = "{recipe: topk, n: 128, k: 4}"
TUNED = f"{{recipe: finetune-scale, parents: {PARENT}, tokens: 30k}}"


def grids(parent):
    return f"autoencoders.grids=[{TOPK}, {parent}, {TUNED}]"


def test_a_child_is_made_after_its_parent_in_one_run_and_goes_stale_with_it(bench):
    bench = bench.with_settings(grids("{recipe: relu, n: 128, l1: 0.05}"))
    assert bench.run() is None
    work = bench.graph.workspace
    site = bench.graph.sites[0]
    parent, child = (work.lineage.nodes[f"autoencoder/{site}/{key}"] for key in (PARENT, CHILD))
    assert child.record["inputs"]["autoencoder"] == parent.identity
    folders = [work.artefact(node.name).path for node in (parent, child)]
    before, after = (Autoencoder.load(folder) for folder in folders)
    assert after.provenance["lineage"]["inputs"]["autoencoder"] == parent.identity
    cosine = (before.W_enc * after.W_enc).sum(1) / before.W_enc.norm(dim=1) / after.W_enc.norm(dim=1)
    assert float(cosine.min()) > 0.9999  # a scale of each latent, and nothing else
    metrics = pd.read_parquet(work.study_dir / "evaluation" / site / "metrics.parquet")
    nmse = metrics[(metrics["metric"] == "nmse") & (metrics["variant"] == "all")].set_index("autoencoder")["value"]
    assert nmse[CHILD] < nmse[PARENT]
    assert stale(work.lineage, work.outputs, work.pointers) == []

    other = bench.with_settings(
        grids("{recipe: relu, n: 128, l1: 0.05, batch: 256}"),
    ).graph.workspace
    names = {node.name for node in stale(other.lineage, other.outputs, other.pointers)}
    assert {parent.name, child.name} <= names and f"autoencoder/{site}/topk-n128-k4" not in names


def test_without_its_parent_a_child_is_not_made_and_says_why(bench):
    bench = bench.with_settings(grids("{recipe: relu, n: 128, l1: 0.05, lr: {base: 1.0e+9}}"))
    failure = bench.run()
    assert failure is not None
    work, site = bench.graph.workspace, bench.graph.sites[0]
    assert "diverged" in failure
    assert f"autoencoder/{site}/{CHILD}: it is made from autoencoder/{site}/{PARENT}" in failure
    assert "make that first" in failure
    assert work.find(f"autoencoder/{site}/{CHILD}") is None
    assert work.find(f"autoencoder/{site}/topk-n128-k4") is not None
