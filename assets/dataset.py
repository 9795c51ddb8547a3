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
    from sae_pipeline.activations import EvaluationSet
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft


def held_out(workspace: Workspace, site: str) -> tuple[EvaluationSet, str]:
    """What the autoencoders of a site are judged on, and its identity: the evaluation set, or of a null dataset the
    same set with draws in place of its rows."""
    from sae_pipeline.activations import EvaluationSet
    from sae_pipeline.dataset import DrawnSet, Gaussian
    from sae_pipeline.study import identity_of

    found = workspace.artefact(f"evaluation_set/{site}")
    if workspace.study.dataset.null is None:
        return EvaluationSet.open(found), found.identity
    drawn_from = workspace.artefact(f"dataset/{site}")
    identity = identity_of({"evaluation_set": found.identity, "drawn_from": drawn_from.identity})
    return DrawnSet(found, Gaussian.open(drawn_from)), identity


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
            statistics_prefix=work.study.activations.statistics_rows,
            copy=bool(work.study.dataset.copy_),
            null=work.study.dataset.null,
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
        Rule("every row is counted", "rows", equals="rows_expected"),
        *(_OF_ROWS if workspace.study.dataset.null is None else _OF_DRAWS),
    ]


_OF_ROWS = (
    Rule("normaliser round trip", "round_trip_error", 0, 1e-5),
    Rule("batches mix contexts", "same_context_excess", maximum=1.5, severity="warn"),
    Rule("batches mix documents", "same_document_ratio", maximum=2.0, severity="warn"),
)

_INDEPENDENT = "draws are independent of each other and belong to no context"

# Both errors of the sample are 1 on average; 30 is 5.5 standard errors even where one direction holds all the variance.
_OF_DRAWS = (
    Rule("every row is in the covariance", "covariance_rows", equals="rows"),
    Rule("the covariance has the rows' variance", "variance_error", 0, 1e-6),
    Rule("its root gives it back", "root_error", 0, 1e-9),
    Rule("draws have the rows' mean", "sample_mean_error", 0, 30),
    Rule("draws have the rows' covariance", "sample_covariance_error", 0, 30),
    Rule("normaliser round trip", "round_trip_error", left_out="no draw goes back into the subject"),
    Rule("batches mix contexts", "same_context_excess", severity="warn", left_out=_INDEPENDENT),
    Rule("batches mix documents", "same_document_ratio", severity="warn", left_out=_INDEPENDENT),
)


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
