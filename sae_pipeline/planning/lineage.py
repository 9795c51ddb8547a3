"""The graph of a study: every artefact it asks for, with its identity, before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from sae_pipeline.planning.continuation import InUse, continued
from sae_pipeline.planning.facts import Facts
from sae_pipeline.store import PipelineError
from sae_pipeline.study import (
    NULL,
    PROBES,
    STABILITY,
    VERSIONS,
    AutoencoderSpec,
    Site,
    Study,
    expand,
    identity_of,
    lineage_record,
    siblings,
)

_NOT_IN_TABLES = {
    "key", "adam_betas", "prefixes", "options", "resample", "stop", "milestones", "keep_before_decay",
}  # fmt: skip
"""Fields of a spec that are no single value, or say what is kept and not what is trained."""


@dataclass(frozen=True)
class Node:
    """One artefact the study asks for.

    Attributes:
        name: name in the graph, `<asset>[/<site>[/<autoencoder>]]`; the key of `current.json`.
        stage: one of the six words (or `report`); names the artefact folder.
        key: readable folder name within the stage.
        record: stage, version, determining configuration and input identities; hashed into `identity`.
        inputs: names of the nodes it is made from.
    """

    name: str
    stage: str
    key: str
    identity: str
    record: Mapping[str, Any] = field(compare=False)
    inputs: tuple[str, ...]

    @property
    def asset(self) -> str:
        """The asset this is a partition of."""
        return self.name.split("/")[0]


class Lineage:
    """All nodes of a study by name, inputs before what is made from them.

    `in_use`: the tokens that the study uses, which new ones may continue; None: whatever is made begins with nothing.
    """

    def __init__(self, study: Study, facts: Facts, in_use: InUse | None = None) -> None:
        self.study = study
        self.facts = facts
        self.specs: dict[Site, dict[str, AutoencoderSpec]] = {}
        self.nodes: dict[str, Node] = {}
        self._add_tokens(in_use)
        for text, site in facts.sites.items():
            self.specs[site] = expand(study, site, text, facts.widths[site])
            self._add_site(text, site)
        self._add_report()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def of_asset(self, asset: str) -> list[Node]:
        """All nodes of one asset, e.g. every `autoencoder`."""
        return [node for node in self if node.asset == asset]

    def _add(self, name: str, stage: str, key: str, versions: str, config: Mapping[str, Any], inputs: list[str]) -> str:
        record = lineage_record(
            name.split("/")[0],
            VERSIONS[versions],
            config,
            {item.split("/")[0]: self.nodes[item].identity for item in inputs},
        )
        self.nodes[name] = Node(name, stage, key, identity_of(record), record, tuple(inputs))
        return name

    def _add_tokens(self, in_use: InUse | None) -> None:
        config = {
            "tokens": self.study.tokens.determining(),
            "corpora": [
                {**corpus.determining(), "content": dict(self.facts.corpora[corpus.name])}
                for corpus in self.study.corpora
            ],
            "split_list": {name: identity_of({"names": names}) for name, names in self.facts.split_list.items()},
            "tokenizer": self.facts.tokenizer,
            "seed": self.study.seed,
        }
        key = "-".join(corpus.name for corpus in self.study.corpora)
        record = continued(lineage_record("tokens", VERSIONS["tokens"], config, {}), self.facts.files, in_use)
        self.nodes["tokens"] = Node("tokens", "tokens", key, identity_of(record), record, ())

    def _add_site(self, text: str, site: Site) -> None:
        study, facts = self.study, self.facts
        source = {
            "subject": facts.subject,
            **study.subject.determining(),
            "site": {"layer": site.layer, "where": site.where},
        }
        activations = self._add(
            f"activations/{site}",
            "activations",
            str(site),
            "activations",
            {**source, "stored": study.activations.determining()},  # both have a dtype
            ["tokens"],
        )
        evaluation_set = self._add(
            f"evaluation_set/{site}",
            "activations",
            f"evaluation_set-{site}",
            "evaluation_set",
            {**source, "tokens": study.evaluation.tokens},
            ["tokens"],
        )
        dataset = self._add(
            f"dataset/{site}",
            "dataset",
            str(site),
            "dataset",
            {"normaliser": self.normaliser(text), "seed": study.seed, **study.dataset.determining()},
            [activations],
        )
        if facts.probe_tasks is not None:
            self._add_probe_set(site, source)
        metrics = [
            metric
            for key, spec in self.specs[site].items()
            for metric in self._add_autoencoder(site, key, spec, dataset, evaluation_set)
        ]
        if STABILITY in study.evaluation.metrics:
            metrics += [self._add_stability(site, key) for key in self.specs[site]]
        self._add_fits(site, metrics)

    def _add_probe_set(self, site: Site, source: Mapping[str, Any]) -> None:
        tasks = {
            "tasks": dict(self.facts.probe_tasks or {}),
            "tokenizer": self.facts.tokenizer,
            "context": self.study.tokens.context,
            "seed": self.study.seed,
        }
        self._add(f"probe_set/{site}", "evaluation", f"probe_set-{site}", "probe_set", {**source, **tasks}, [])

    def specs_at(self, site: str) -> dict[str, AutoencoderSpec]:
        """The autoencoders of a site by key."""
        return self.specs[Site.parse(site)]

    def spec(self, node: Node) -> AutoencoderSpec:
        """The autoencoder that a node partitioned by autoencoder belongs to."""
        _, site, key = node.name.split("/")
        return self.specs_at(site)[key]

    def autoencoder_frame(self, site: str) -> pd.DataFrame:
        """The autoencoders of a site: autoencoder, sae_id, site and every field of their specs; null, if they are."""
        rows = [
            {"autoencoder": key, "sae_id": self.nodes[f"autoencoder/{site}/{key}"].identity, "site": site}
            | self._null()
            | spec.model_dump(
                exclude={
                    "key",
                    "adam_betas",
                    "prefixes",
                    "options",
                    "resample",
                    "stop",
                    "milestones",
                    "keep_before_decay",
                }
            )
            for key, spec in self.specs_at(site).items()
        ]
        return pd.DataFrame(rows).astype({"k": "Int64"})

    def normaliser(self, text: str) -> str:
        """Normaliser of a site as the study writes it, `auto` resolved by architecture and place."""
        from sae_pipeline.dataset import default_normaliser

        chosen = self.study.sites[text].normaliser
        return default_normaliser(self.facts.norm, self.facts.sites[text].where) if chosen == "auto" else chosen

    def _add_autoencoder(
        self, site: Site, key: str, spec: AutoencoderSpec, dataset: str, evaluation_set: str
    ) -> list[str]:
        place = f"{site}/{key}"
        config = spec.determining() | self._null()
        inputs = [dataset] if spec.parent is None else [dataset, f"autoencoder/{site}/{spec.parent}"]
        autoencoder = self._add(f"autoencoder/{place}", "autoencoders", f"{site}-{key}", "autoencoder", config, inputs)
        codes = self._add(
            f"codes/{place}", "evaluation", f"codes-{site}-{key}", "codes", {}, [autoencoder, evaluation_set]
        )
        metrics = [
            self._add_metric(
                place,
                metric,
                [codes, autoencoder, evaluation_set, *([f"probe_set/{site}"] if metric == PROBES else [])],
            )
            for metric in self.study.evaluation.metrics
            if metric != STABILITY
        ]
        reconstruction = f"eval_reconstruction/{place}"
        self._add(
            f"champion/{place}",
            "evaluation",
            f"champion-{site}-{key}",
            "champion",
            self._bootstrap(),
            [reconstruction, autoencoder, evaluation_set],
        )
        return metrics

    def _add_metric(self, place: str, metric: str, inputs: list[str], **config: Any) -> str:
        parameters = {"parameters": self.study.evaluation.metrics[metric], **self._bootstrap(), **config}
        key = f"{metric}-{place.replace('/', '-')}"
        return self._add(f"eval_{metric}/{place}", "evaluation", key, f"eval_{metric}", parameters, inputs)

    def _add_stability(self, site: Site, key: str) -> str:
        """Once all autoencoders of the site are there: it is made from the siblings, too, which its record names."""
        place = f"{site}/{key}"
        names = {seed: f"autoencoder/{site}/{other}" for seed, other in siblings(self.specs[site], key).items()}
        identities = {str(seed): self.nodes[name].identity for seed, name in names.items()}
        inputs = [f"codes/{place}", f"autoencoder/{place}", f"evaluation_set/{site}"]
        name = self._add_metric(place, STABILITY, inputs, siblings=identities)
        self.nodes[name] = replace(self.nodes[name], inputs=(*inputs, *names.values()))
        return name

    def _bootstrap(self) -> dict[str, Any]:
        return {"bootstrap": self.study.evaluation.bootstrap.determining(), "seed": self.study.seed}

    def _null(self) -> dict[str, str]:
        """The mark of null controls: in the tables and, through the record, in every saved autoencoder."""
        return {} if self.study.null is None else {NULL: self.study.null}

    def _add_fits(self, site: Site, metrics: list[str]) -> None:
        name = f"evaluation_table/{site}"
        inputs = {metric: self.nodes[metric].identity for metric in metrics}
        record = lineage_record("evaluation_table", VERSIONS["evaluation_table"], {}, inputs)
        self.nodes[name] = Node(name, "evaluation", f"table-{site}", identity_of(record), record, tuple(metrics))
        scaling = {**self.study.scaling.determining(), "seed": self.study.seed}
        self._add(f"scaling_laws/{site}", "scaling", str(site), "scaling", scaling, [name])

    def _add_report(self) -> None:
        inputs = [
            node.name for node in self if node.asset in ("scaling_laws", "evaluation_table", "autoencoder", "dataset")
        ]
        record = lineage_record(
            "report",
            VERSIONS["report"],
            {"title": self.study.report.title, "gates": self.study.gates.determining()},
            {name: self.nodes[name].identity for name in inputs},
        )
        self.nodes["report"] = Node("report", "report", self.study.study, identity_of(record), record, tuple(inputs))


def matching_nodes(lineage: Lineage, key: str) -> list[Node]:
    """Nodes named `key`, below it, or of the autoencoder `key`.

    Raises:
        PipelineError: none matches; the message names the nearest.
    """
    found = [
        node for node in lineage if node.name == key or node.name.startswith(f"{key}/") or node.name.endswith(f"/{key}")
    ]
    if not found:
        names = list(lineage.nodes) + [name.rsplit("/", 1)[-1] for name in lineage.nodes]
        raise PipelineError(f"nothing in study {lineage.study.study!r} is named {key!r}; near: {_near(key, names)}")
    return found


def asset_nodes(lineage: Lineage, asset: str, keys: Sequence[str] = ()) -> list[Node]:
    """Nodes of one asset; of some autoencoders or sites where `keys` names them.

    Raises:
        PipelineError: there is no such asset, or a key names none of its partitions.
    """
    assets = list(dict.fromkeys(node.asset for node in lineage))
    if asset not in assets:
        raise PipelineError(f"no asset is named {asset!r}; near: {_near(asset, assets)}; all: {', '.join(assets)}")
    nodes = lineage.of_asset(asset)
    parts = [part for node in nodes for part in node.name.split("/")[1:]]
    for key in keys:
        if key not in parts:
            raise PipelineError(f"{asset} has no partition {key!r}; near: {_near(key, parts)}")
    return [node for node in nodes if not keys or set(keys) & set(node.name.split("/")[1:])]


def _near(name: str, names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(difflib.get_close_matches(name, names, n=3, cutoff=0.3))) or "nothing"
