"""Stability in the real thing: one more seed of a finished study, compared both ways; what is missing is named."""

import numpy as np
import pytest

from assets.launching import backfill, prepare_instance
from assets.partitions import partition_key
from assets.publishing import asset_key
from sae_pipeline.evaluation import read_metric, read_tables
from sae_pipeline.store import PipelineError
from tests.pipeline.conftest import Bench

KEYS = ("topk-n128-k4", "topk-n128-k4-s1")


@pytest.fixture
def seeded(bench) -> Bench:
    return bench.with_settings(
        "autoencoders.grids=[{recipe: topk, n: 128, k: 4, seeds: [0, 1]}]",
        "evaluation.metrics={reconstruction: {}, density: {}, downstream: {}, stability: {}, antipodal: {}, "
        "context_length: {tokens: 2000}}",
        "scaling.forms=[]",
    )


def test_siblings_are_compared_and_a_missing_one_is_named(seeded):
    work, site = seeded.graph.workspace, seeded.graph.sites[0]
    nodes = [work.lineage[f"eval_stability/{site}/{key}"] for key in KEYS]
    before = work.artefact(f"autoencoder/{site}/{KEYS[0]}").created_at
    assert seeded.run() is None
    assert work.artefact(f"autoencoder/{site}/{KEYS[0]}").created_at == before
    both = []
    for node, seed in zip(nodes, (1, 0), strict=True):
        result = read_metric(work.artefact(node.name))
        rows = result.metrics.set_index(["metric", "variant"])["value"]
        both.append(rows["shared", "both"])
        assert result.facts["siblings"] == [seed]
        assert rows["max_cosine", "decoder"] > rows["max_cosine", "random"]
    assert both[0] == both[1]
    table = read_tables(work.artefact(f"evaluation_table/{site}"))["metrics"]
    assert np.isfinite(table[table["metric"] == "matched_cosine"]["value"]).sum() == 6
    long = table[(table["metric"] == "kl_at_positions") & (table["autoencoder"] == KEYS[0])].set_index("variant")[
        "value"
    ]
    assert long["0-63"] == pytest.approx(long["0-63,short"], rel=1e-3)
    assert long["256-511"] > 0 and np.isnan(long["512-"])
    twins = table[table["metric"] == "antipodal"]["value"]
    assert len(twins) == 6 and twins.between(0, 1).all()

    seeded.forget("eval_stability")
    directory = work.directory(work.lineage[f"autoencoder/{site}/{KEYS[1]}"])
    directory.rename(directory.with_name("away"))
    instance = prepare_instance(seeded.graph, seeded.instance)
    with pytest.raises(PipelineError, match=f"not made yet, or stopped at a gate: autoencoder/{site}/{KEYS[1]}"):
        backfill(seeded.definitions(), seeded.graph, instance, nodes[:1])
    key = asset_key(seeded.graph, "eval_stability")
    defs = seeded.definitions()
    result = defs.resolve_job_def("evaluate").execute_in_process(
        instance=instance, asset_selection=[key], raise_on_error=False,
        partition_key=partition_key(f"{site}/{KEYS[0]}"),
    )  # fmt: skip
    (failure,) = (event.step_failure_data.user_failure_data for event in result.all_events if event.is_step_failure)
    assert f"it is made from autoencoder/{site}/{KEYS[1]}, not published yet; make that first" in failure.description
