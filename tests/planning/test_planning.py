"""The plan and the lineage of a study, without running it."""

from dataclasses import replace
from pathlib import Path

import pytest

from sae_pipeline.planning.facts import Facts, autoencoder_keys, declared_facts, gather_or_declare
from sae_pipeline.planning.lineage import Lineage, matching_nodes
from sae_pipeline.planning.plan import make_plan, render_plan
from sae_pipeline.planning.staleness import differences
from sae_pipeline.planning.support import refuse_unsupported, unsupported
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site, load_study
from sae_pipeline.training.cost import state_bytes

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")


def study_of(name, *overrides):
    return load_study(CHECKOUT / "studies" / f"{name}.yaml", overrides)


@pytest.fixture
def facts():
    """Facts of a made-up subject of the demo's sizes."""
    return Facts(
        subject="s",
        tokenizer="t",
        norm="layernorm",
        n_layers=4,
        d_model=128,
        vocab_size=4096,
        n_params=1_350_400,
        max_positions=256,
        widths={SITE: 128},
        sites={"code.3of5.resid_post": SITE},
        corpora={"stdlib": {"content": "c"}},
        split_list={},
    )


def stale_assets(before, after):
    return {
        node.asset for node in after if node.name not in before.nodes or before[node.name].identity != node.identity
    }


@pytest.mark.parametrize(
    ("override", "remade"),
    [
        ("tokens.context=32", "everything"),
        ("activations.micro_batch=8", set()),
        ("subject.device=cuda", set()),
        ("subject.dtype=bfloat16", "activations evaluation_set dataset autoencoder codes eval champion"),
        ("activations.dtype=bfloat16", "activations dataset autoencoder codes eval champion"),
        ("evaluation.tokens=50k", "evaluation_set codes eval champion"),
        ("dataset.sample_rows=1000", "dataset autoencoder codes eval champion"),
        ("evaluation.bootstrap.resamples=100", "eval champion"),
        ("scaling.hold_out=none", "scaling_laws report"),
        ("gates.dead=0.2", "report"),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(facts, override, remade):
    before, after = Lineage(study_of("demo"), facts), Lineage(study_of("demo", override), facts)
    metrics = {f"eval_{name}" for name in ("reconstruction", "density", "downstream")}
    tail = {"evaluation_table", "scaling_laws", "report"}
    if remade == "everything":
        expected = {node.asset for node in before}
    elif isinstance(remade, set):
        expected = remade
    else:
        named = set(remade.split())
        expected = (named - {"eval"}) | (metrics | tail if "eval" in named else set())
    assert stale_assets(before, after) == expected


def test_one_autoencoder_more_makes_one_autoencoder(facts):
    before = Lineage(study_of("demo"), facts)
    after = Lineage(study_of("demo", "autoencoders.grids.0.k=[4, 8, 16, 32]"), facts)
    fresh = [n.name for n in after if n.asset == "autoencoder" and n.name not in before.nodes]
    assert fresh == [f"autoencoder/{SITE}/topk-n{n}-k32" for n in (256, 512, 1024, 2048, 4096)]
    kept = [n for n in after if n.asset == "autoencoder" and n.name in before.nodes]
    assert all(before[node.name].identity == node.identity for node in kept)


def test_a_corpus_is_its_content_and_a_subject_its_weights(facts):
    before = Lineage(study_of("demo"), facts)
    assert stale_assets(before, Lineage(study_of("demo"), replace(facts, subject="other"))) >= {"activations"}
    changed = replace(facts, corpora={"stdlib": {"content": "other"}})
    assert stale_assets(before, Lineage(study_of("demo"), changed)) == {node.asset for node in before}
    renamed = study_of("demo", "study=another", "report.title=Demo")
    assert stale_assets(before, Lineage(renamed, facts)) == set()


def test_inputs_come_before_what_is_made_from_them(facts):
    seen = set()
    for node in Lineage(study_of("demo"), facts):
        assert set(node.inputs) <= seen
        seen.add(node.name)


def test_matching_names_the_nearest(facts):
    lineage = Lineage(study_of("demo"), facts)
    assert {node.asset for node in matching_nodes(lineage, "topk-n256-k4")} >= {"autoencoder", "codes", "champion"}
    with pytest.raises(PipelineError, match="near: topk-n256-k"):
        matching_nodes(lineage, "topk-n256-k5")


def test_differences_name_the_leaf():
    old = {"config": {"a": 1, "b": [1, 2], "c": {"d": "x"}}, "inputs": {"tokens": "aa"}}
    new = {"config": {"a": 1, "b": [1, 3], "c": {"d": "x", "e": 2}}, "inputs": {"tokens": "aa"}}
    assert differences(old, new) == ["config.b[1]: 2 → 3", "config.c.e: None → 2"]
    assert differences(old, old) == []


@pytest.mark.parametrize("name", ["gpt2-small", "gpt4-16m"])
def test_a_plan_works_without_the_subject(name, monkeypatch):
    monkeypatch.setattr("sae_pipeline.planning.facts.gather_facts", _unreachable)
    study = study_of(name)
    facts, declared = gather_or_declare(study, CHECKOUT)
    plan = make_plan(study, facts, flops_per_s=1e12)
    assert declared
    text = render_plan(plan, declared=declared)
    assert "not reachable" in text and "peak memory" in text
    if name == "gpt4-16m":
        # Weights, two moments and the average of 2 n d parameters alone: 4 x 4 x 2 x 2^24 x 12288 bytes.
        assert plan.memory_bytes > 4 * 4 * 2 * 2**24 * 12288
        assert plan.bytes_ > 40e9 * 12288 * 2


def _unreachable(study, root):
    raise PipelineError("no network")


def test_declared_facts_need_a_shape():
    with pytest.raises(PipelineError, match=r"subject\.shape"):
        declared_facts(study_of("demo"), CHECKOUT)


def test_keys_are_known_without_a_model():
    assert len(autoencoder_keys(study_of("gpt2-small"), CHECKOUT)) == 42


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("autoencoders.grids.1={recipe: ghost, n: 256, l1: 0.1}", "recipe 'ghost'"),
        ("evaluation.metrics={reconstruction: {}, ghost: {}}", "metric 'ghost'"),
        ("evaluation.controls=[gaussian_cov]", "evaluation.controls"),
        ("retrain={when: {schedule: '0 3 1 * *'}, start: warm}", r"retrain\.start: warm"),
        ("retrain={when: {new_tokens: 50M}}", r"retrain\.when\.new_tokens"),
        ("training.log=[wandb]", r"training\.log: wandb"),
        ("budget={disk: 1GB}", "budget"),
    ],
)
def test_what_this_version_cannot_do_is_refused_by_name(override, named):
    with pytest.raises(PipelineError, match=named):
        refuse_unsupported(study_of("demo", override))


def test_a_time_for_retraining_is_supported():
    assert list(unsupported(study_of("demo", "retrain={when: {schedule: '0 3 1 * *'}}"))) == []


@pytest.mark.parametrize("name", ["demo", "smoke", "gpt2-small"])
def test_shipped_studies_ask_for_nothing_more(name):
    assert list(unsupported(study_of(name))) == []


def test_a_memory_budget_lowers_the_peak_of_a_plan_and_stales_nothing(facts):
    plain, bound = study_of("demo"), study_of("demo", "training.memory=1MB")
    peaks = [make_plan(study, facts, flops_per_s=1.0).memory_bytes for study in (plain, bound)]
    states = [state_bytes(spec, 128) for spec in Lineage(plain, facts).specs_at(str(SITE)).values()]
    assert peaks[0] - peaks[1] == sum(states) - max(states) > 0
    assert stale_assets(Lineage(plain, facts), Lineage(bound, facts)) == set()
