"""What a window costs, and which settings do not go with one, known before anything runs."""

from pathlib import Path

import pytest

from sae_pipeline.planning.consistency import refuse_contradictions
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.planning.plan import make_plan, render_plan
from sae_pipeline.planning.preflight import bytes_to_make
from sae_pipeline.planning.support import unsupported
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site, load_study
from tests.planning.test_planning import facts  # noqa: F401 (a fixture)

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
SHARD_BYTES = 65_536 * 128 * 2 + 16 * 20 + 4


def demo(*overrides):
    return load_study(CHECKOUT / "studies" / "demo.yaml", overrides)


def rows(study, facts):  # noqa: F811
    return {row.what.split(" ")[0]: row for row in make_plan(study, facts, flops_per_s=1e9).rows}


def test_the_plan_tells_the_bound_on_the_disk_and_what_making_shards_again_costs(facts):  # noqa: F811
    whole = rows(demo(), facts)
    found = rows(demo("activations.retain={window: 200MB}", "activations.statistics_prefix=400k"), facts)
    pinned = 7 * 65_536  # the shards that hold 400 000 rows
    assert "window" not in whole and found["activations"].tokens == pinned
    assert found["activations"].bytes_ == pytest.approx(7 * SHARD_BYTES, rel=1e-6)
    assert found["window"].bytes_ == 11 * SHARD_BYTES <= 200_000_000 < 12 * SHARD_BYTES
    assert found["window"].tokens == 2_000_000 - pinned  # one pass of the training split
    per_row = whole["activations"].flops / 2_000_000
    for name in ("activations", "window"):
        assert found[name].flops == pytest.approx(per_row * found[name].tokens)
    text = render_plan(make_plan(demo("activations.retain=none", "activations.statistics_prefix=400k"), facts, 1e9))
    assert f"window {SITE}" in text


def test_a_second_pass_makes_again_what_the_window_did_not_hold(facts):  # noqa: F811
    prefix = "activations.statistics_prefix=400k"
    grids = "autoencoders.grids=[{recipe: topk, n: 256, k: 4}, {recipe: topk, n: 512, k: 4, batch: 512}]"
    left = 2_000_000 - 7 * 65_536
    expected = {"none": 2 * left - 8 * 65_536, "{window: 1GB}": left}
    for retain, made in expected.items():
        assert rows(demo(f"activations.retain={retain}", prefix, grids), facts)["window"].tokens == pytest.approx(
            made, abs=1
        )


def test_only_training_needs_room_for_the_window(facts):  # noqa: F811
    study = demo("activations.retain=none", "activations.statistics_prefix=400k")
    lineage, plan = Lineage(study, facts), make_plan(study, facts, flops_per_s=1e9)
    window = next(row.bytes_ for row in plan.rows if row.what.startswith("window"))
    of_activations = bytes_to_make(lineage, plan, lineage.of_asset("activations"))
    assert of_activations == pytest.approx(7 * SHARD_BYTES, rel=1e-6)
    one, every = (bytes_to_make(lineage, plan, lineage.of_asset("autoencoder")[:n]) for n in (1, 18))
    assert one > window and every - window < 18 * (one - 0.9 * window)


def test_retain_changes_no_identity_but_that_of_its_default_prefix(facts):  # noqa: F811
    def identities(*overrides):
        return {node.name: node.identity for node in Lineage(demo(*overrides), facts)}

    given = "activations.statistics_prefix=400k"
    assert identities(given) == identities(given, "activations.retain=none")
    assert identities(given) == identities(given, "activations.retain={window: 1GB}")
    assert identities("activations.retain=none") == identities("activations.statistics_prefix=1M")
    assert identities() != identities(given)
    assert identities() != identities("dataset.copy=true") and identities() == identities("dataset.copy=false")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["activations.retain={window: 100MB}"], r"retain: a window of 100,000,000 bytes holds 5 shards.*needs 8"),
        (["activations.retain=none", "dataset.copy=true"], r"dataset.copy: it keeps all rows.*leave one of them out"),
        (["dataset.null=gaussian_cov", "dataset.copy=true"], r"dataset.copy: there are no rows to copy.*leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_change(facts, overrides, why):  # noqa: F811
    study = demo(*overrides)
    assert list(unsupported(study)) == []
    with pytest.raises(PipelineError, match=why):
        refuse_contradictions(study, facts.widths, facts.sites)
    refuse_contradictions(demo("activations.retain={window: 150MB}"), facts.widths, facts.sites)


def test_a_prefix_of_everything_leaves_nothing_to_a_window(facts):  # noqa: F811
    found = rows(demo("activations.retain=none", "activations.statistics_prefix=3M"), facts)
    assert "window" not in found and found["activations"].tokens == 2_000_000
