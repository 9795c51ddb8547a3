"""activations: the subject's residuals in committed Zarr shards, and the evaluation set of each site."""

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
    from sae_pipeline.tokens import Tokens


def _tokens(workspace: Workspace) -> Tokens:
    from sae_pipeline.tokens import Tokens

    return Tokens.open(workspace.artefact("tokens"))


def _make_activations(job: Job) -> Mapping[Node, dict[str, Any]]:
    """All sites of the run in one pass of the subject."""
    from sae_pipeline.activations import ACTS, harvest, pinned_shards, summarise_shards
    from sae_pipeline.planning.earlier import earlier_activations
    from sae_pipeline.study import Site

    work = job.workspace
    by_site = {Site.parse(node.name.partition("/")[2]): (node, draft) for node, draft in job.drafts.items()}
    earlier = {
        site: earlier_activations(work.lineage, node, work.outputs, work.pointers)
        for site, (node, _) in by_site.items()
    }
    tokens = _tokens(work)
    pinned = pinned_shards(work.study.activations, tokens)
    harvest(
        job.subject(),
        tokens,
        {site: draft for site, (_, draft) in by_site.items()},
        work.study.activations,
        earlier=earlier,
        progress=job.progress,
        shards=pinned,
    )
    for draft in job.drafts.values():
        draft.keep(ACTS, len(pinned))
    return {node: summarise_shards(draft) for node, draft in job.drafts.items()}


def _audit_activations(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.activations import audit_frame

    return audit_frame(draft)


def _activation_rules(workspace: Workspace) -> Sequence[Rule]:
    outliers = [Rule("no row is far longer than the median", "outliers", 0, 0, severity="warn")]
    return [
        Rule("files are as committed", "damage", empty=True),
        Rule("every value is finite", "non_finite", 0, 0),
        Rule("shards are complete", "rows", equals="rows_expected"),
        Rule("no two shards are the same", "duplicate_of", -1, -1),
        Rule("no channel is constant over a shard", "constant_dims", 0, 0),
        *(outliers if workspace.study.activations.outliers else ()),
    ]


def _show_activations(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.activations import audit_frame
    from sae_pipeline.report import figures

    frame = audit_frame(artefact)
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            norm_by_shard=lambda: figures.shard_norms(frame), spread_by_shard=lambda: figures.shard_spread(frame)
        ),
    }


ACTIVATIONS = Stage(
    asset="activations",
    group="activations",
    description="Activations of the training split in Zarr shards; several sites share one early-stopped pass.",
    deps=("tokens",),
    by="site",
    make=_make_activations,
    audit=_audit_activations,
    rules=_activation_rules,
    show=_show_activations,
    index="shard",
    pool="gpu",
    kinds=frozenset({"zarr", "torch"}),
)


def _make_evaluation_set(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.activations import build_evaluation_set
    from sae_pipeline.study import Site

    study = job.workspace.study
    return {
        node: build_evaluation_set(
            job.subject(),
            _tokens(job.workspace),
            Site.parse(node.name.partition("/")[2]),
            draft,
            n_tokens=study.evaluation.tokens,
            micro_batch=study.activations.micro_batch,
            progress=job.progress,
        )
        for node, draft in job.drafts.items()
    }


def _audit_evaluation_set(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.activations import audit_evaluation_set

    return audit_evaluation_set(draft)


def _evaluation_set_rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("files are as committed", "damage", empty=True),
        Rule("every value is finite", "non_finite", 0, 0),
        Rule("every score is finite", "non_finite_scores", 0, 0),
        Rule("KL is not negative", "negative_kl", 0, 0),
        Rule("there are rows", "n_rows", 1),
        Rule("rows equal the unmasked positions", "n_rows", equals="rows_masked"),
        Rule("documents are whole and in order", "documents_split", 0, 0),
        Rule("resuming with the untouched activation changes no bit", "resume_max_abs_difference", 0, 0),
        Rule("ablating everything costs more than nothing", "zero_dce", 0.0, severity="warn"),
    ]


def _show_evaluation_set(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.activations import EvaluationSet
    from sae_pipeline.report import figures

    evaluation_set = EvaluationSet.open(artefact)
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            loss_by_position=lambda: figures.loss_by_position(evaluation_set.clean_ce),
            ablations=lambda: figures.ablation_references(evaluation_set.references),
        ),
    }


EVALUATION_SET = Stage(
    asset="evaluation_set",
    group="activations",
    description="Held-out documents with exact residuals, clean losses and ablation references; knows no autoencoder.",
    deps=("tokens",),
    by="site",
    make=_make_evaluation_set,
    audit=_audit_evaluation_set,
    rules=_evaluation_set_rules,
    show=_show_evaluation_set,
    pool="gpu",
    kinds=frozenset({"zarr", "torch"}),
)
