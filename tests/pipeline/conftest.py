"""The smoke study, run once for all tests of this folder, in a real Dagster instance."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from assets.launching import prepare_instance, run_study
from resources import StudyGraph
from sae_pipeline.definitions import build_definitions
from tests.pipeline.daemon import CHECKOUT, Night
from tests.pipeline.front_door import home, template, world  # noqa: F401 (fixtures of the tests of bad input)
from tests.pipeline.harvested import harvested  # noqa: F401 (a fixture)


@dataclass
class Bench:
    """A study with its outputs and its Dagster instance."""

    graph: StudyGraph
    instance: dg.DagsterInstance

    def definitions(self) -> dg.Definitions:
        return build_definitions(self.graph)

    def run(self) -> str | None:
        return run_study(self.definitions(), self.graph, prepare_instance(self.graph, self.instance))

    def with_settings(self, *overrides: str) -> "Bench":
        return Bench(load_graph(self.graph.outputs_dir, *overrides), self.instance)

    def forget(self, *assets: str) -> None:
        """Delete the artefacts of some assets, so that the next run makes them again."""
        for asset in assets:
            for node in self.graph.workspace.lineage.of_asset(asset):
                shutil.rmtree(self.graph.workspace.directory(node))

    def is_published(self, name: str) -> bool:
        return self.graph.workspace.find(name) is not None


def load_graph(outputs_dir: Path, *overrides: str) -> StudyGraph:
    return StudyGraph.read(CHECKOUT / "studies" / "smoke.yaml", overrides, outputs_dir)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The smoke study after one complete run. Tests must not change it; see `bench`."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(folder / "home")) as instance:
        bench = Bench(load_graph(folder / "outputs"), instance)
        assert bench.run() is None
        yield bench


@pytest.fixture
def bench(smoke, tmp_path):
    """A copy of the finished smoke study that a test may spoil, with a Dagster instance of its own."""
    shutil.copytree(smoke.graph.outputs_dir, tmp_path / "outputs")
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        yield Bench(load_graph(tmp_path / "outputs"), instance)


@pytest.fixture(scope="session")
def night(smoke, tmp_path_factory):
    """A copy of the finished smoke study behind a real `dagster dev`, shared by the tests that need one."""
    folder = tmp_path_factory.mktemp("night")
    shutil.copytree(smoke.graph.outputs_dir, folder / "outputs")
    night = Night(folder, folder / "outputs")
    try:
        night.daemon.ready()
        yield night
    finally:
        night.daemon.stop()
