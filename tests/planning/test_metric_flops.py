"""FLOPs that a plan counts for metrics which run the subject, against counts by hand."""

from pathlib import Path

import pytest

from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.metric_flops import TokenFlops, metric_flops
from sae_pipeline.planning.plan import make_plan
from sae_pipeline.study import AutoencoderSpec, Site, load_study

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
ALWAYS = "reconstruction: {}, density: {}"
BEFORE, BEHIND = 1_000.0, 10.0


def study_of(metrics):
    return load_study(CHECKOUT / "studies" / "smoke.yaml", [f"evaluation.metrics={{{ALWAYS}{metrics}}}"])


def spec_of(**fields):
    sizes = {"n": 256, "batch": 64, "tokens": 1024, "lr": 1e-3, "dead_after_tokens": 1_000_000}
    return AutoencoderSpec(**{"key": "a", "recipe": "topk", "k": 4, "seed": 0, **sizes, **fields})


def flops(metrics, *specs, held_out=100):
    return metric_flops(study_of(metrics), specs, held_out, TokenFlops(BEFORE, BEHIND))


def test_metrics_that_read_codes_cost_nothing_and_costs_add_up():
    assert flops(", progressive: {}, shrinkage: {}", spec_of()) == 0
    each = [", downstream: {}", ", ablation: {}", ", context_length: {}", ", explanations: {}"]
    assert flops("".join(each), spec_of()) == pytest.approx(sum(flops(one, spec_of()) for one in each))


def test_downstream_runs_what_lies_behind_the_site_on_every_row():
    assert flops(", downstream: {}", spec_of(), spec_of()) == 2 * 2 * BEHIND * 100


def test_an_ablation_runs_a_window_for_the_base_every_latent_and_the_references():
    prefix = study_of("").tokens.context / 2
    asked = ", ablation: {tokens: 3, window: 5}"
    assert flops(asked, spec_of(k=4)) == 3 * BEHIND * (prefix + 5 * (1 + 4 + 2 * 4))
    assert flops(asked, spec_of(k=20)) == 3 * BEHIND * (prefix + 5 * (1 + 20 + 2 * 8))
    both = ", ablation: {tokens: 3, window: 5, base: [activation, reconstruction]}"
    assert flops(both, spec_of(k=4)) == 3 * BEHIND * (prefix + 2 * 5 * (1 + 4 + 2 * 4))


def test_no_more_is_run_than_is_held_out():
    for metric in ("ablation", "context_length"):
        few, many = (flops(f", {metric}: {{tokens: 50}}", spec_of(), held_out=n) for n in (10, 1000))
        assert many == 5 * few > 0


def test_long_contexts_are_run_once_and_spliced_for_each_autoencoder():
    assert flops(", context_length: {tokens: 7}", *[spec_of()] * 3) == 7 * (BEFORE + 2 * (1 + 3) * BEHIND)


def test_explanations_run_up_to_the_site_alone():
    few, many = (flops(f", explanations: {{latents: {n}, examples: 2}}", spec_of()) for n in (1, 10))
    assert many == 10 * few > 0 and few % BEFORE == 0


def test_a_plan_with_them_is_longer():
    facts = Facts(
        subject="s", tokenizer="t", norm="layernorm", n_layers=4, d_model=128, vocab_size=4096, n_params=1_350_400,
        max_positions=256, widths={SITE: 128}, sites={"code.3of5.resid_post": SITE},
        corpora={"stdlib": {"content": "c"}}, split_list={},
    )  # fmt: skip
    short, long = (make_plan(study_of(metrics), facts, 1e9) for metrics in ("", ", ablation: {}"))
    assert long.seconds > short.seconds
