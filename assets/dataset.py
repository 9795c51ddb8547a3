"""dataset: exact statistics, the normaliser, and the seeded read order of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.publishing import Job, Stage
from resources import Rule

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft


def _make(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.dataset import build_dataset
    from sae_pipeline.tokens import Tokens

    work = job.workspace
    contexts = Tokens.open(work.artefact("tokens")).split("train")
    return {
        node: build_dataset(
            draft,
            work.artefact(node.inputs[0]),
            normaliser=node.record["config"]["normaliser"],
            seed=work.study.seed,
            row_offsets=contexts.row_offsets,
            document_of_context=contexts.document,
            resident_shards=work.study.dataset.resident_shards,
            sample_rows=work.study.dataset.sample_rows,
            progress=job.progress,
        )
        for node, draft in job.drafts.items()
    }


def _audit(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.dataset import audit_frame

    return audit_frame(draft)


def _rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("every value is finite", "non_finite", 0, 0),
        Rule("the sample is finite", "sample_non_finite", 0, 0),
        Rule("no channel is constant", "constant_channels", 0, 0),
        Rule("the data varies", "total_variance", 1e-12),
        Rule("normaliser round trip", "round_trip_error", 0, 1e-5),
        Rule("every row is counted", "rows", equals="rows_expected"),
        Rule("batches mix contexts", "same_context_excess", maximum=1.5, severity="warn"),
        Rule("batches mix documents", "same_document_ratio", maximum=2.0, severity="warn"),
    ]


def _show(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    import numpy as np

    from sae_pipeline.report import figures

    sample = np.load(artefact.file("sample.npy"))
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            channel_spread=lambda: figures.channel_spread(sample), spectrum=lambda: figures.spectrum(sample)
        ),
    }


DATASET = Stage(
    asset="dataset",
    group="dataset",
    description="Statistics, normaliser and seeded read order: a view of the shards that hands out batches.",
    deps=("activations", "tokens"),
    by="site",
    make=_make,
    audit=_audit,
    rules=_rules,
    show=_show,
    kinds=frozenset({"zarr"}),
    follows=True,
)
