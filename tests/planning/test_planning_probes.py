"""Probe tasks in the graph of a study: there where probes are asked for, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sae_pipeline.planning.facts import Facts, gather_facts
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.planning.plan import make_plan
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site, load_study

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
CORE = "evaluation.metrics={reconstruction: {}, density: {}, downstream: {}}"
PROBED = "evaluation.metrics={reconstruction: {}, density: {}, downstream: {}, probes: %s}"


@pytest.fixture
def facts():
    return Facts(
        subject="s", tokenizer="t", norm="layernorm", n_layers=4, d_model=128, vocab_size=4096, n_params=1_350_400,
        max_positions=256, widths={SITE: 128}, sites={"code.3of5.resid_post": SITE},
        corpora={"stdlib": {"content": "c"}}, split_list={}, probe_tasks={"content": "p"},
    )  # fmt: skip


def study_of(*overrides):
    return load_study(CHECKOUT / "studies" / "smoke.yaml", overrides)


def identities(lineage):
    return {node.name: node.identity for node in lineage}


def test_asking_for_probes_changes_no_other_figure(facts):
    before = identities(Lineage(study_of(CORE), replace(facts, probe_tasks=None)))
    after = identities(Lineage(study_of(PROBED % "{}"), facts))
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"probe_set", "eval_probes"}
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"evaluation_table", "scaling_laws", "report"}


def test_a_probe_set_depends_on_its_tasks_the_subject_and_the_context(facts):
    def of(facts, *overrides):
        return identities(Lineage(study_of(PROBED % "{}", *overrides), facts))[f"probe_set/{SITE}"]

    found = of(facts)
    others = [
        of(replace(facts, probe_tasks={"content": "q"})),
        of(replace(facts, subject="other")),
        of(replace(facts, tokenizer="other")),
        of(facts, "tokens.context=32"),
        of(facts, "seed=1"),
    ]
    assert len({found, *others}) == 6
    assert found == of(facts, "evaluation.tokens=5k", "activations.micro_batch=8", "tokens.train=50k")


def test_a_probed_autoencoder_is_made_from_the_probe_set(facts):
    lineage = Lineage(study_of(PROBED % "{k: [1, 2]}"), facts)
    for node in lineage.of_asset("eval_probes"):
        assert f"probe_set/{SITE}" in node.inputs
        assert node.record["inputs"]["probe_set"] == lineage[f"probe_set/{SITE}"].identity
        assert node.record["config"]["parameters"] == {"k": [1, 2]}
    assert all(f"probe_set/{SITE}" not in node.inputs for node in lineage.of_asset("eval_density"))


def test_the_plan_counts_probe_tasks_where_they_are_asked_for(facts):
    assert not any("probe_set" in row.what for row in make_plan(study_of(CORE), facts, 1.0).rows)
    row = next(row for row in make_plan(study_of(PROBED % "{}"), facts, 1.0).rows if row.what == f"probe_set {SITE}")
    assert row.partitions == 1 and row.tokens > 0 and row.bytes_ > 0 and row.flops > 0


def test_the_content_of_tasks_decides_and_not_their_place(tmp_path):
    def content(root, text):
        root.mkdir()
        (root / "task.jsonl").write_text(json.dumps({"text": text, "label": 1, "split": "train"}) + "\n")
        return gather_facts(study_of(PROBED % f"{{tasks: {root}/task.jsonl}}"), CHECKOUT).probe_tasks

    one, same, other = (content(tmp_path / name, text) for name, text in (("a", "x"), ("b", "x"), ("c", "y")))
    assert one == same != other and one["source"] == "files"


def test_embedded_tasks_follow_the_library_and_the_card():
    study = study_of(PROBED % "{}")
    found = gather_facts(study, CHECKOUT)
    assert found.probe_tasks["content"] == found.corpora["stdlib"]
    assert found.probe_tasks["source"] == "embedded" and len(found.probe_tasks["sides"]) == 64
    assert gather_facts(study_of(), CHECKOUT).probe_tasks is None


@pytest.mark.parametrize(
    ("probes", "says"),
    [
        ("{tasks: /nowhere/at/all.jsonl}", "does not exist"),
        ("{tasks: 3}", "evaluation.metrics: metric probes: tasks takes 'embedded', or a .jsonl file"),
        ("{k: [3, 1]}", "rising list of whole numbers"),
        ("{tsaks: embedded}", "the parameter 'tsaks' is unknown"),
    ],
)
def test_tasks_that_cannot_be_are_refused_before_any_work(probes, says):
    with pytest.raises(PipelineError, match=says):
        gather_facts(study_of(PROBED % probes), CHECKOUT)


def test_embedded_tasks_need_a_subject_with_a_card(tmp_path):
    from shutil import copytree, ignore_patterns

    from sae_pipeline.subjects.source import locate

    shipped = locate(study_of().subject, root=CHECKOUT, weights=False).folder
    copytree(shipped, tmp_path / "mine", ignore=ignore_patterns("card.json"))
    study = study_of(
        PROBED % "{}", f"subject.id={tmp_path / 'mine'}", "corpora=[{name: stdlib, source: stdlib, tokens: 150k}]"
    )
    with pytest.raises(PipelineError, match=r"ships no such card; name labelled \.jsonl files under tasks"):
        gather_facts(study, CHECKOUT)
