"""One spoiled shard of activations, by every way of launching: the chain stops at its gate and names the shard."""

import shutil

import dagster as dg
import pytest

from assets.publishing import asset_key
from assets.ranges import RANGE_END, RANGE_START
from assets.retraining import TICK, next_runs
from tests.pipeline.conftest import Bench, load_graph
from tests.pipeline.poison import BAD, SAYS, plant

SITES = ("code.1.resid_post", "code.2.resid_post", "code.3.resid_post")
SETTINGS = (
    f"sites={{{', '.join(site + ': {normaliser: paper}' for site in SITES)}}}",
    "corpora.0.tokens=60k",
    "tokens.train=20k",
    "tokens.held_out=3k",
    "evaluation.tokens=2k",
    "autoencoders.defaults.tokens=20k",
    "autoencoders.grids=[{recipe: topk, n: 64, k: 4}]",
)
MIDDLE = SITES[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of three sites after one complete run."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(folder / "home")) as instance:
        bench = Bench(load_graph(folder / "outputs", *SETTINGS), instance)
        assert bench.run() is None
    return folder / "outputs"


@pytest.fixture
def three(finished, tmp_path):
    """A copy of it without anything below the activations, in a new Dagster instance that has seen it all made."""
    shutil.copytree(finished, tmp_path / "outputs")
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        bench = Bench(load_graph(tmp_path / "outputs", *SETTINGS), instance)
        downstream = ("dataset", "autoencoder", "codes", "eval_reconstruction", "champion", "evaluation_table")
        bench.forget(*downstream, "eval_density", "eval_downstream", "scaling_laws", "report")
        yield bench


def _launch(bench, first, last=None, tags=None):
    """The job `build_dataset` over a stretch of sites, or over one as a person launches it."""
    job = bench.definitions().resolve_job_def("build_dataset")
    where = (
        {"partition_key": first} if last is None else {"tags": {RANGE_START: first, RANGE_END: last, **(tags or {})}}
    )
    return job.execute_in_process(instance=bench.instance, raise_on_error=False, **where)


def _says(result) -> str:
    return " ".join(
        event.step_failure_data.user_failure_data.description
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    )


def _nothing_below(bench, site) -> bool:
    nodes = [node for node in bench.graph.workspace.lineage if site in node.name.split("/")[1:2]]
    below = [node for node in nodes if node.asset not in ("activations", "evaluation_set")]
    assert len(below) > 5
    return not any(bench.is_published(node.name) for node in below)


@pytest.mark.parametrize("kind", list(SAYS))
def test_a_single_run_stops_and_names_the_shard(three, kind):
    plant(three.graph.workspace, MIDDLE, kind)
    result = _launch(three, MIDDLE)
    assert not result.success
    assert f"activations/{MIDDLE}: " in _says(result)
    assert SAYS[kind] in _says(result)
    assert f"at shard {BAD}" in _says(result)
    assert not three.is_published(f"activations/{MIDDLE}")
    assert _nothing_below(three, MIDDLE)


def test_a_later_run_of_what_lies_below_finds_nothing_to_stand_on(three):
    plant(three.graph.workspace, MIDDLE, "nan")
    assert not _launch(three, MIDDLE).success
    job = three.definitions().resolve_job_def("build_dataset")
    later = job.execute_in_process(
        instance=three.instance,
        raise_on_error=False,
        partition_key=MIDDLE,
        asset_selection=[asset_key(three.graph, "dataset")],
    )
    assert not later.success
    assert _nothing_below(three, MIDDLE)


@pytest.mark.parametrize("kind", ["constant", "swapped"])
def test_a_range_over_three_sites_publishes_the_good_ones(three, kind):
    for site in (SITES[0], SITES[2]):
        shutil.rmtree(three.graph.workspace.artefact(f"activations/{site}").path)
    plant(three.graph.workspace, MIDDLE, kind)
    result = _launch(three, SITES[0], SITES[2])
    assert not result.success
    assert f"at shard {BAD}" in _says(result)
    assert [three.is_published(f"activations/{site}") for site in SITES] == [True, False, True]
    assert _nothing_below(three, MIDDLE)


def test_automation_asks_only_for_what_stands_on_good_shards(three):
    plant(three.graph.workspace, MIDDLE, "nan")
    before = dg.evaluate_automation_conditions(defs=three.definitions(), instance=three.instance)
    assert not _launch(three, SITES[0], SITES[2]).success
    after = dg.evaluate_automation_conditions(defs=three.definitions(), instance=three.instance, cursor=before.cursor)
    requested = after.get_requested_partitions(asset_key(three.graph, "dataset"))
    assert requested == {SITES[0], SITES[2]}
    assert after.get_num_requested(asset_key(three.graph, "autoencoder")) == 0


def test_the_schedule_does_not_go_past_the_failed_gate(three):
    plant(three.graph.workspace, MIDDLE, "truncated")
    requests = list(next_runs(three.graph, three.instance, "tick"))
    assert [request.job_name for request in requests] == ["build_dataset"] * len(requests)
    for request in requests:
        job = three.definitions().resolve_job_def("build_dataset")
        job.execute_in_process(
            instance=three.instance, raise_on_error=False, tags=request.tags, asset_selection=request.asset_selection
        )
    assert not three.is_published(f"activations/{MIDDLE}")
    again = list(next_runs(three.graph, three.instance, "tick"))
    assert {request.run_key for request in again} <= {request.run_key for request in requests}
    assert all(request.tags[TICK] == "tick" for request in again)
    assert _nothing_below(three, MIDDLE)
