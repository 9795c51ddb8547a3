"""Stability in the graph of a study: made from the siblings, and from them alone besides its own."""

from pathlib import Path

import pytest

from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.study import Site, expand, load_study, siblings

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
METRICS = "evaluation.metrics={reconstruction: {}, density: {}, downstream: {}%s}"


@pytest.fixture
def facts():
    return Facts(
        subject="s", tokenizer="t", norm="layernorm", n_layers=4, d_model=128, vocab_size=4096, n_params=1_350_400,
        max_positions=256, widths={SITE: 128}, sites={"code.3of5.resid_post": SITE},
        corpora={"stdlib": {"content": "c"}}, split_list={}, probe_tasks=None,
    )  # fmt: skip


def study_of(seeds, metrics=", stability: {}"):
    grids = (
        f"autoencoders.grids=[{{recipe: topk, n: [128, 256], k: 4, seeds: {seeds}}}, "
        "{recipe: topk, n: 128, k: 4, seeds: [7], lr: {base: 2.0e-3}}, {recipe: relu, n: 256, l1: 0.05}]"
    )
    return load_study(CHECKOUT / "studies" / "smoke.yaml", (METRICS % metrics, grids))


def identities(lineage):
    return {node.name: node.identity for node in lineage}


def test_siblings_differ_in_their_seed_alone():
    specs = expand(study_of([0, 3, 1]), SITE, "code.3of5.resid_post", 128)
    assert siblings(specs, "topk-n128-k4") == {1: "topk-n128-k4-s1", 3: "topk-n128-k4-s3"}
    assert siblings(specs, "topk-n256-k4-s3") == {0: "topk-n256-k4", 1: "topk-n256-k4-s1"}
    assert siblings(specs, "topk-n128-k4-s7") == {} == siblings(specs, "relu-n256-l0.05")


def test_stability_is_made_from_the_siblings_of_either_side(facts):
    lineage = Lineage(study_of([0, 1]), facts)
    assert len(lineage.of_asset("eval_stability")) == len(lineage.of_asset("autoencoder"))
    first, second = (f"topk-n128-k4{seed}" for seed in ("", "-s1"))
    for own, other in ((first, second), (second, first)):
        node = lineage[f"eval_stability/{SITE}/{own}"]
        assert f"autoencoder/{SITE}/{own}" in node.inputs and f"autoencoder/{SITE}/{other}" in node.inputs
        assert list(node.record["config"]["siblings"].values()) == [lineage[f"autoencoder/{SITE}/{other}"].identity]
        assert node.record["inputs"]["autoencoder"] == lineage[f"autoencoder/{SITE}/{own}"].identity
    assert lineage[f"eval_stability/{SITE}/relu-n256-l0.05"].record["config"]["siblings"] == {}
    names = list(lineage.nodes)
    assert all(names.index(item) < names.index(node.name) for node in lineage for item in node.inputs)
    table = lineage[f"evaluation_table/{SITE}"]
    assert {name for name in names if name.startswith("eval_")} == set(table.inputs)


def test_one_seed_more_makes_the_siblings_stability_anew_and_no_other_figure(facts):
    before, after = (identities(Lineage(study_of(seeds), facts)) for seeds in ([0, 1], [0, 1, 2]))
    changed = {name for name in before if before[name] != after[name]}
    of_table = {f"evaluation_table/{SITE}", f"scaling_laws/{SITE}", "report"}
    grid = {f"eval_stability/{SITE}/topk-n{n}-k4{seed}" for n in (128, 256) for seed in ("", "-s1")}
    assert changed == of_table | grid


def test_asking_for_stability_changes_no_other_figure(facts):
    before, after = (identities(Lineage(study_of([0, 1], metrics), facts)) for metrics in ("", ", stability: {}"))
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"eval_stability"}
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"evaluation_table", "scaling_laws", "report"}
