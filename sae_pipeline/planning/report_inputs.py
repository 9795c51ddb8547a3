"""What the report of a study shows, gathered from its published artefacts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import pandas as pd

from sae_pipeline.planning.gates import GATES, gate_file
from sae_pipeline.planning.lineage import Lineage, Node
from sae_pipeline.report import GATE_COLUMNS, LineageNode, ReportInputs, SiteInputs
from sae_pipeline.scaling import read_result
from sae_pipeline.store import Artefact, NotPublished, Outputs, read_json

_PACKAGES = ("sae-pipeline", "torch", "transformers", "zarr", "dagster", "great-expectations", "pandas")


def collect_report(lineage: Lineage, outputs: Outputs) -> ReportInputs:
    """Read everything the report of a study shows; autoencoders that are not published are left out.

    Raises:
        NotPublished: tokens, or a site's data, table or laws are missing.
    """
    study = lineage.study
    reader = _Reader(lineage, outputs)
    tokens = reader.artefact("tokens")
    return ReportInputs(
        title=study.report.title or study.study,
        study=study.study,
        null=study.null,
        subject={
            "model": study.subject.id,
            "parameters": lineage.facts.n_params,
            "layers": lineage.facts.n_layers,
            "width": lineage.facts.d_model,
            "context": study.tokens.context,
            "dtype": study.subject.dtype,
        },
        lineage=list(reader.lineage_nodes()),
        sites=[reader.site(str(site)) for site in lineage.facts.sites.values()],
        gates=reader.gates(),
        tokens=tokens.summary,
        documents=pd.read_parquet(tokens.file("documents.parquet")),
        provenance={
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    )


class _Reader:
    def __init__(self, lineage: Lineage, outputs: Outputs) -> None:
        self._lineage, self._outputs = lineage, outputs

    def find(self, node: Node) -> Artefact | None:
        return self._outputs.published(node.stage, node.key, node.identity)

    def artefact(self, name: str) -> Artefact:
        node = self._lineage[name]
        found = self.find(node)
        if found is None:
            raise NotPublished(self._outputs.artefact_dir(node.stage, node.key, node.identity))
        return found

    def lineage_nodes(self) -> Iterator[LineageNode]:
        for node in self._lineage:
            found = self.find(node)
            if node.asset in _STAGE_OF_ASSET and found is not None:
                version = int(node.record["version"])
                yield LineageNode(_STAGE_OF_ASSET[node.asset], node.name, node.identity, version, _flat(found.summary))

    def gates(self) -> pd.DataFrame:
        """The last verdicts of every node as the study now stands, also those that kept a node from being published."""
        folder = self._outputs.study_dir(self._lineage.study.study) / GATES
        rows = []
        for node in self._lineage:
            path = folder / gate_file(node.name)
            if node.asset != "report" and path.exists() and (record := read_json(path))["identity"] == node.identity:
                rows += [{"node": node.name, **verdict} for verdict in record["verdicts"]]
        return pd.DataFrame(rows, columns=list(GATE_COLUMNS))

    def site(self, site: str) -> SiteInputs:
        """Tables, training records, curves and laws of a site."""
        from sae_pipeline.activations import audit_frame

        table = self.artefact(f"evaluation_table/{site}")
        names = ("saes", "metrics", "curves")
        saes, metrics, curves = (pd.read_parquet(table.file(f"{name}.parquet")) for name in names)
        activations = self.artefact(f"activations/{site}")
        windows = {spec.dead_after_tokens for spec in self._lineage.specs_at(site).values()}
        return SiteInputs(
            site=site,
            autoencoders=saes,
            metrics=metrics,
            curves=curves,
            training=self._training(site),
            scaling=read_result(self.artefact(f"scaling_laws/{site}")),
            shards=audit_frame(activations),
            data={
                **_flat(self.artefact(f"dataset/{site}").summary),
                **_flat(self.artefact(f"evaluation_set/{site}").summary),
            },
            dead_window_tokens=windows.pop() if len(windows) == 1 else None,
        )

    def _training(self, site: str) -> dict[str, pd.DataFrame]:
        found = {key: self.find(self._lineage[f"autoencoder/{site}/{key}"]) for key in self._lineage.specs_at(site)}
        return {
            key: pd.read_parquet(artefact.file("training.parquet"))
            for key, artefact in found.items()
            if artefact is not None
        }


_STAGE_OF_ASSET = {
    "tokens": "tokens",
    "activations": "activations",
    "evaluation_set": "activations",
    "dataset": "dataset",
    "autoencoder": "autoencoders",
    "evaluation_table": "evaluation",
    "scaling_laws": "scaling",
}


def _flat(summary: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in summary.items() if isinstance(value, bool | int | float | str)}
