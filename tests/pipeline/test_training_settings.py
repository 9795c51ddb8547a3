"""Stops, milestones, memory and larger budgets, from a line in a study to what is published."""

import pandas as pd

from sae_pipeline.autoencoders import Autoencoder

ONE = "autoencoders.grids=[{recipe: topk, n: 128, k: 4}]"
KEY = "topk-n128-k4"


def published(bench):
    return bench.graph.workspace.find(f"autoencoder/{bench.graph.sites[0]}/{KEY}")


def test_a_member_that_converged_is_published_with_its_milestones(bench):
    asked = bench.with_settings(
        ONE, "autoencoders.defaults.stop={converged: 0.5}", "training.milestones=3", "training.memory=1MB"
    )
    assert asked.run() is None
    artefact = published(asked)
    figures = artefact.read_json("training.json")
    assert figures["converged_at_tokens"] < figures["tokens"] < figures["budget_tokens"]
    table = pd.read_parquet(artefact.file("milestones.parquet"))
    assert len(table) >= 2 and table["nmse"].notna().all() and table["tokens"].iloc[-1] == figures["tokens"]
    for tokens in table["tokens"][:-1]:
        assert artefact.exists(f"milestones/{tokens}/config.json")
        assert Autoencoder.load(artefact.path / "milestones" / str(tokens)).config.n == 128


def test_a_larger_budget_goes_on_from_the_published_run(bench):
    kept = [ONE, "autoencoders.defaults.keep_before_decay=true"]
    short = bench.with_settings(*kept, "autoencoders.defaults.tokens=30k")
    assert short.run() is None
    long = short.with_settings(*kept)
    assert long.run() is None
    extends = published(long).read_json("extends.json")
    assert extends == {"identity": published(short).identity, "tokens": 30_000}
    assert published(long).read_json("training.json")["tokens"] == 60_000 // 512 * 512


def test_a_hopeless_member_is_named_and_not_published(bench):
    asked = bench.with_settings(ONE, "autoencoders.defaults.tokens=50k", "training.stop_if={nmse: 0.01, after: 0.1}")
    failure = asked.run()
    assert f"{KEY} was given up" in failure and "training.stop_if" in failure
    assert published(asked) is None
