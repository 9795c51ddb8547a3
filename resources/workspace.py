"""The study a code location serves, and the folders it works in."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_pipeline.store import Artefact, NotPublished, Outputs, Pointers, read_json, write_json_atomic
from sae_pipeline.study import Study, load_study

if TYPE_CHECKING:
    from sae_pipeline.planning.lineage import Lineage, Node

CHECKOUT = Path(__file__).resolve().parent.parent


def study_file(name: str) -> Path:
    """The file of a study given as people name it: a path that ends in .yaml or .yml, or a name in studies/."""
    return Path(name) if name.endswith((".yaml", ".yml")) else CHECKOUT / "studies" / f"{name}.yaml"


def outputs_dir() -> Path:
    """Where results lie: `SAE_OUTPUTS`, by default `outputs` in the checkout."""
    return Path(os.environ.get("SAE_OUTPUTS", CHECKOUT / "outputs")).resolve()


@dataclass(frozen=True)
class StudyGraph:
    """What a code location knows of its study without loading a model: enough to define assets and partitions.

    It is also the resource `study`, through which assets reach the workspace.

    Attributes:
        study: the validated study.
        root: folder that relative paths of the study start from.
        outputs_dir: where artefacts and the study's folder lie.
        sites: resolved site keys, in the order of the study.
        path, overrides: the file and the settings that the study was read from.
    """

    study: Study
    root: Path
    outputs_dir: Path
    sites: tuple[str, ...]
    path: Path
    overrides: tuple[str, ...]

    @classmethod
    def load(cls) -> StudyGraph:
        """Load the study that the environment names.

        `SAE_STUDY` is a name in studies/ or a path (default `demo`), `SAE_SET` holds overrides, one a line,
        `SAE_OUTPUTS` the output folder (default `outputs` in the checkout).
        """
        path = study_file(os.environ.get("SAE_STUDY", "demo"))
        return cls.read(path, os.environ.get("SAE_SET", "").splitlines(), outputs_dir())

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str], outputs_dir: Path) -> StudyGraph:
        """The graph of a study file with some values changed."""
        from sae_pipeline.planning.facts import resolve_sites

        study = load_study(path, overrides)
        sites = tuple(str(site) for site in resolve_sites(study, CHECKOUT).values())
        return cls(study, CHECKOUT, outputs_dir.resolve(), sites, path, tuple(overrides))

    def reload(self) -> StudyGraph:
        """The graph of the same file as it now stands, with nothing remembered of subject and corpora."""
        return self.read(self.path, self.overrides, self.outputs_dir)

    @cached_property
    def workspace(self) -> Workspace:
        """The study at work; one per process, since corpora do not change under a running job."""
        return Workspace(self.study, self.root, self.outputs_dir)


class Workspace:
    """A study at work: its lineage, its artefacts, its pointers."""

    def __init__(self, study: Study, root: Path, outputs_dir: Path) -> None:
        self.study = study
        self.root = root
        self.outputs = Outputs(outputs_dir)
        self.pointers = Pointers(outputs_dir, study.study)
        self.study_dir = self.outputs.study_dir(study.study)

    @cached_property
    def lineage(self) -> Lineage:
        """The graph of the study; looks at the subject and the corpora once.

        Raises:
            PipelineError: the study asks for what cannot be done, or the subject or a corpus cannot be used.
        """
        from sae_pipeline.planning.continuation import tokens_in_use
        from sae_pipeline.planning.facts import gather_facts
        from sae_pipeline.planning.lineage import Lineage
        from sae_pipeline.planning.support import refuse_unsupported

        refuse_unsupported(self.study)
        return Lineage(self.study, gather_facts(self.study, self.root), tokens_in_use(self.outputs, self.pointers))

    def artefact(self, name: str) -> Artefact:
        """The published artefact of a node, of exactly the identity the study asks for.

        Raises:
            NotPublished: it has not been made, or did not pass its gate; make it first.
        """
        found = self.find(name)
        if found is None:
            raise NotPublished(self.directory(self.lineage[name]))
        return found

    def find(self, name: str) -> Artefact | None:
        """The published artefact of a node, or None."""
        node = self.lineage[name]
        return self.outputs.published(node.stage, node.key, node.identity)

    def stale(self, assets: Container[str] | None = None) -> list[Node]:
        """Nodes (of some assets) whose published artefact is not the one the study asks for, inputs first."""
        from sae_pipeline.planning.staleness import stale

        found = stale(self.lineage, self.outputs, self.pointers)
        return [node for node in found if assets is None or node.asset in assets]

    def best(self, place: str) -> Artefact | None:
        """The best version so far of `<site>/<autoencoder>`, or None before the first."""
        entry = self._champions().get(place)
        return None if entry is None else Artefact.open(self.outputs.root / entry["artefact"])

    def crown(self, place: str, challenger: Artefact, verdict: Mapping[str, Any]) -> None:
        """Record a verdict in `best.json`, once per challenger, and move the pointer if it was promoted."""
        champions = self._champions()
        entry = champions.setdefault(place, {"artefact": None, "history": []})
        if any(past["challenger"] == challenger.identity for past in entry["history"]):
            return
        entry["history"].append({"challenger": challenger.identity, **verdict})
        if verdict["promoted"]:
            entry["artefact"] = challenger.path.relative_to(self.outputs.root).as_posix()
        write_json_atomic(self.study_dir / "best.json", champions)

    def _champions(self) -> dict[str, Any]:
        path = self.study_dir / "best.json"
        return dict(read_json(path)) if path.exists() else {}

    def directory(self, node: Node) -> Path:
        """Folder of a node's artefact."""
        return self.outputs.artefact_dir(node.stage, node.key, node.identity)
