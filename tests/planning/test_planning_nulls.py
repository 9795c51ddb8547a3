"""Null controls in the graph, the plan and the status of a study."""

import re
from pathlib import Path

import pytest

from sae_pipeline.planning.consistency import refuse_contradictions
from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.planning.plan import make_plan, render_plan
from sae_pipeline.planning.status import study_status
from sae_pipeline.planning.status_table import render_status
from sae_pipeline.planning.support import unsupported
from sae_pipeline.store import Outputs, PipelineError
from sae_pipeline.study import Site, load_study

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"
SITE = Site("code", 2, "resid_post")
SITES = {"code.3of5.resid_post": SITE}
DRAWN = (
    "dataset.null=gaussian_cov",
    "evaluation.metrics={reconstruction: {}, density: {}}",
    "scaling.targets=[nmse]",
)


def lineage_of(*overrides, subject="s"):
    return Lineage(
        load_study(SMOKE, overrides),
        Facts(
            subject=subject, tokenizer="t", norm="layernorm", n_layers=4, d_model=128, vocab_size=4096, n_params=10**6,
            max_positions=256, widths={SITE: 128}, sites=SITES, corpora={"stdlib": {"content": "c"}}, split_list={},
        ),
    )  # fmt: skip


def refuse(*overrides):
    refuse_contradictions(load_study(SMOKE, overrides), {SITE: 128}, SITES)


def shared(a, b):
    return {node.asset for node in a if node.name in b.nodes and b[node.name].identity == node.identity}


def test_a_drawn_dataset_shares_all_that_comes_before_it():
    real, drawn = lineage_of(*DRAWN[1:]), lineage_of(*DRAWN)
    assert shared(real, drawn) == {"tokens", "activations", "evaluation_set"}


def test_an_untrained_twin_shares_the_tokens():
    assert shared(lineage_of(), lineage_of("subject.weights=untrained", subject="twin")) == {"tokens"}


@pytest.mark.parametrize(
    ("overrides", "null"), [(("subject.weights=untrained",), "untrained subject"), (DRAWN, "gaussian_cov dataset")]
)
def test_autoencoders_and_tables_of_a_null_say_so(overrides, null, tmp_path):
    lineage = lineage_of(*overrides)
    assert {node.record["config"]["null"] for node in lineage.of_asset("autoencoder")} == {null}
    assert set(lineage.autoencoder_frame(str(SITE))["null"]) == {null}
    assert f"null control: {null}" in render_plan(make_plan(lineage.study, lineage.facts, flops_per_s=1e9))
    outputs = Outputs(tmp_path)
    status = study_status(lineage, outputs, outputs.pointers("smoke"))
    assert status.as_dict()["null"] == null and f"null control: {null}" in render_status(status)


def test_a_real_study_does_not_speak_of_nulls(tmp_path):
    lineage = lineage_of()
    assert all("null" not in node.record["config"] for node in lineage)
    assert "null" not in lineage.autoencoder_frame(str(SITE))
    assert "null" not in render_plan(make_plan(lineage.study, lineage.facts, flops_per_s=1e9))
    outputs = Outputs(tmp_path)
    status = study_status(lineage, outputs, outputs.pointers("smoke"))
    assert status.as_dict()["null"] is None and "null" not in render_status(status)


def test_splicing_draws_is_refused_with_the_lines_to_write():
    with pytest.raises(PipelineError, match="downstream has nothing to splice") as caught:
        refuse("dataset.null=gaussian_cov")
    for line in ("evaluation.metrics: {reconstruction: {}, density: {}}", "scaling.targets: [nmse]"):
        assert line in str(caught.value)
    with pytest.raises(PipelineError, match=r"take dce out of scaling\.targets"):
        refuse(*DRAWN[:2])
    refuse(*DRAWN)
    refuse("subject.weights=untrained")  # a twin has a subject to splice into


@pytest.mark.parametrize(
    ("control", "instead"),
    [
        ("gaussian_cov", r"dataset: \{null: gaussian_cov\}"),
        ("random_weights_subject", r"subject\.weights: untrained"),
    ],
)
def test_controls_within_a_study_are_refused_with_the_study_to_run_instead(control, instead):
    (message,) = unsupported(load_study(SMOKE, [f"evaluation.controls=[{control}]"]))
    assert message.startswith("evaluation.controls") and control in message
    assert re.search(f"second study.*{instead}", message)


def test_the_plan_knows_the_covariance():
    real, drawn = (make_plan(study, lineage_of().facts, flops_per_s=1e9) for study in _studies())
    rows = [next(row for row in plan.rows if row.what.startswith("dataset")) for plan in (real, drawn)]
    assert rows[1].bytes_ - rows[0].bytes_ == 8 * (2 * 128**2 + 128)
    assert rows[0].flops == 0 and rows[1].flops == 2 * 128**2 * 60_000


def _studies():
    return load_study(SMOKE, DRAWN[1:]), load_study(SMOKE, DRAWN)
