"""Positions drawn of contexts and flagged outliers: what they cost, what they leave as it was, what is refused."""

from pathlib import Path

import pytest

from assets.activations import _activation_rules
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.planning.plan import make_plan
from sae_pipeline.planning.support import unsupported
from sae_pipeline.study import load_study
from tests.planning.test_planning import facts  # noqa: F401 (a fixture)

CHECKOUT = Path(__file__).parents[2]


def demo(*overrides):
    return load_study(CHECKOUT / "studies" / "demo.yaml", overrides)


def plan_rows(study, facts):  # noqa: F811
    return {row.what.split(" ")[0]: row for row in make_plan(study, facts, flops_per_s=1e9).rows}


def test_rows_drawn_of_contexts_take_more_text_and_as_many_passes(facts):  # noqa: F811
    whole, thin = (plan_rows(demo(*overrides), facts) for overrides in ((), ("tokens.per_context=16",)))
    assert thin["activations"].tokens == whole["activations"].tokens
    assert thin["activations"].bytes_ == whole["activations"].bytes_
    assert thin["activations"].flops == 4 * whole["activations"].flops
    assert thin["evaluation_set"] == whole["evaluation_set"]
    assert thin["tokens"].bytes_ == pytest.approx(whole["tokens"].bytes_ * (4 * 2_000_000 + 200_000) / 2_200_000)


def test_settings_that_are_not_made_change_no_identity(facts):  # noqa: F811
    def identities(*overrides):
        return {node.name: node.identity for node in Lineage(demo(*overrides), facts)}

    plain = identities()
    assert identities("tokens.per_context=null", "activations.outliers=null") == plain
    assert identities("tokens.per_context=16")["tokens"] != plain["tokens"]
    flagged = identities("activations.outliers={action: flag}")
    assert flagged["tokens"] == plain["tokens"]
    assert {name for name in plain if name.startswith("activations/") and flagged[name] == plain[name]} == set()


def test_flagging_is_done_and_dropping_refused():
    assert not list(unsupported(demo("activations.outliers={norm_over_median: 8}")))
    (refusal,) = unsupported(demo("activations.outliers={norm_over_median: 8, action: drop}"))
    assert "drop" in refusal and "action: flag" in refusal


def test_the_gate_warns_of_outliers_where_they_are_looked_for():
    class Work:
        def __init__(self, study):
            self.study = study

    def severities(*overrides):
        return {rule.column: rule.severity for rule in _activation_rules(Work(demo(*overrides)))}

    assert "outliers" not in severities()
    assert severities("activations.outliers={action: flag}")["outliers"] == "warn"
