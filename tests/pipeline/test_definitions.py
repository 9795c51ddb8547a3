"""The code location: light to import, and shaped as the design says."""

import subprocess
import sys

import dagster as dg

from assets.automation import job_assets
from assets.publishing import asset_key
from sae_pipeline.definitions import build_definitions
from tests.pipeline.conftest import CHECKOUT, load_graph

HEAVY = ("torch", "transformers", "great_expectations", "matplotlib.pyplot", "pandas")
GROUPS = {"tokens", "activations", "dataset", "autoencoders", "evaluation", "scaling"}


def test_importing_the_definitions_loads_nothing_heavy():
    code = f"import sys, sae_pipeline.definitions; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_graph(tmp_path):
    graph = load_graph(tmp_path)
    assets = build_definitions(graph).resolve_asset_graph()
    names = {key.path[-1] for key in assets.get_all_asset_keys()}
    assert names == {
        *("tokens", "activations", "evaluation_set", "dataset", "autoencoder", "codes", "champion"),
        *("eval_reconstruction", "eval_density", "eval_downstream", "evaluation_table", "scaling_laws", "report"),
    }
    assert {assets.get(key).group_name for key in assets.get_all_asset_keys()} == GROUPS
    assert all(key.path[0] == "smoke" for key in assets.get_all_asset_keys())
    member = assets.get(asset_key(graph, "autoencoder")).partitions_def
    assert isinstance(member, dg.MultiPartitionsDefinition)
    assert assets.get(asset_key(graph, "tokens")).partitions_def is None


def test_every_asset_is_gated_twice_and_runs_in_one_job(tmp_path):
    graph = load_graph(tmp_path)
    definitions = build_definitions(graph)
    assets = definitions.resolve_asset_graph()
    for key in assets.get_all_asset_keys():
        assert {check.name for check in assets.get_check_keys_for_assets({key})} == {"integrity", "signatures"}
    jobs = job_assets(graph)
    assert list(jobs) == ["build_dataset", "train", "evaluate", "fit"]
    assert sorted(name for group in jobs.values() for name in group) == sorted(
        key.path[-1] for key in assets.get_all_asset_keys()
    )
    for name in jobs:
        assert definitions.resolve_job_def(name)
