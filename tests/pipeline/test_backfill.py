"""`sae-pipeline backfill`: one asset over all its partitions, over those missing, over some."""

import shutil

import pytest

from assets.publishing import asset_key
from sae_pipeline.cli import main

KEYS = ("topk-n128-k4", "topk-n512-k8")  # not next to one another


@pytest.fixture
def command(bench, monkeypatch):
    """The command line on a copy of the finished smoke study."""
    monkeypatch.setenv("DAGSTER_HOME", bench.instance.root_directory)
    monkeypatch.setenv("SAE_STUDY", "smoke")
    monkeypatch.setenv("SAE_SET", "")
    monkeypatch.setenv("SAE_OUTPUTS", str(bench.graph.outputs_dir))
    return lambda *arguments: main(["backfill", *arguments])


def _names(bench):
    return [f"eval_density/{bench.graph.sites[0]}/{key}" for key in KEYS]


def _recorded(bench):
    key = asset_key(bench.graph, "eval_density")
    records = bench.instance.fetch_materializations(key, limit=50).records
    return sorted(str(record.partition_key).split("|")[0] for record in records)


def test_only_what_is_missing_is_made(bench, command, capsys):
    for name in _names(bench):
        shutil.rmtree(bench.graph.workspace.artefact(name).path)
    assert command("eval_density", "--missing") == 0
    assert "eval_density: 2 partitions, done" in capsys.readouterr().out
    assert all(bench.is_published(name) for name in _names(bench))
    assert _recorded(bench) == sorted(KEYS)


def test_all_partitions_are_recorded_and_nothing_is_made_twice(bench, command):
    work = bench.graph.workspace
    made = {node.name: work.artefact(node.name).created_at for node in work.lineage.of_asset("eval_density")}
    assert command("eval_density") == 0
    assert {name: work.artefact(name).created_at for name in made} == made
    assert _recorded(bench) == sorted(name.split("/")[2] for name in made)


def test_what_comes_before_must_be_there(bench, command, capsys):
    missing = f"codes/{bench.graph.sites[0]}/{KEYS[0]}"
    for name in (missing, *_names(bench)):
        shutil.rmtree(bench.graph.workspace.artefact(name).path)
    assert command("eval_density", "--missing") == 1
    assert f"not made yet, or stopped at a gate: {missing}; make them with" in capsys.readouterr().err
    assert _recorded(bench) == []
    assert command("eval_density", "--key", KEYS[1]) == 0
    assert _recorded(bench) == [KEYS[1]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval_densty",), "no asset is named 'eval_densty'; near: eval_density"),
        (("eval_density", "--key", "topk-n128-k5"), "eval_density has no partition 'topk-n128-k5'; near: topk-n128-k"),
    ],
)
def test_a_wrong_name_is_answered_by_the_nearest(command, capsys, arguments, says):
    assert command(*arguments) == 1
    assert says in capsys.readouterr().err
