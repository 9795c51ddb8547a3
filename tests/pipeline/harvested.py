"""The small good study with tokens and activations made by its own stages, and a dataset made from these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from assets.activations import ACTIVATIONS
from assets.dataset import DATASET
from assets.publishing import Job, Stage
from assets.tokens import TOKENS
from resources import StudyGraph
from resources.workspace import Workspace
from sae_pipeline.store import Artefact, Draft, silent
from sae_pipeline.subjects import Subject, load_subject
from tests.pipeline.front_door import World

SITE = "tiny.1.resid_post"


@dataclass
class Harvested:
    """A world in which the data stages have run."""

    world: World

    @property
    def work(self) -> Workspace:
        """The study as its file now stands."""
        return StudyGraph.read(self.world.study, (), self.world.outputs).workspace

    @property
    def tokens(self) -> Artefact:
        return self.work.artefact("tokens")

    @property
    def activations(self) -> Artefact:
        return self.work.artefact(f"activations/{SITE}")

    def subject(self) -> Subject:
        return load_subject(self.work.study.subject, root=self.work.root, device="cpu")

    def make(self, *stages: Stage) -> None:
        """Publish the nodes of some stages that are not published, as a run would, and point at them."""
        for stage in stages:
            work = self.work
            for node in work.lineage.of_asset(stage.asset):
                if (made := work.find(node.name)) is None:
                    lineage = dict(node.record)
                    with Draft.open(
                        work.directory(node), stage=node.stage, key=node.key, identity=node.identity, lineage=lineage
                    ) as draft:
                        summaries = stage.make(Job(work, {node: draft}, silent, self.subject))
                        made = draft.publish(dict(summaries[node]))
                work.pointers.set(node.name, made)


@pytest.fixture
def harvested(world: World) -> Iterator[Harvested]:
    (world.outputs / "tiny" / "current.json").unlink()  # of what was made before there is no need
    harvested = Harvested(world)
    harvested.make(TOKENS, ACTIVATIONS, DATASET)
    yield harvested
