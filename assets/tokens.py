"""tokens: documents → contexts of token ids, split, permuted, traceable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.publishing import Job, Stage
from resources import Rule
from sae_pipeline.store import PipelineError

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft
    from sae_pipeline.tokens import Tokens


def _make(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.subjects import load_tokenizer
    from sae_pipeline.tokens import build_tokens

    work = job.workspace
    facts = work.lineage.facts
    tokenizer = load_tokenizer(work.study.subject, root=work.root)
    return {
        node: build_tokens(
            draft,
            work.study.tokens,
            work.study.corpora,
            tokenizer,
            seed=work.study.seed,
            root=work.root,
            split_list=dict(facts.split_list),
            files=facts.files,
            continues=_continued(work, node),
            progress=job.progress,
        )
        for node, draft in job.drafts.items()
    }


def _continued(work: Workspace, node: Node) -> Tokens | None:
    """The version that a node's record says it continues."""
    from sae_pipeline.planning.continuation import CONTINUES, find_version
    from sae_pipeline.tokens import Tokens

    identity = node.record.get(CONTINUES)
    if identity is None:
        return None
    found = find_version(work.outputs, node.stage, identity)
    if found is None:
        raise PipelineError(f"version {identity[:12]} of the tokens, which the new one continues, is gone; run again")
    return Tokens.open(found)


def _audit(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.tokens import audit_frame

    return audit_frame(draft)


def _rules(workspace: Workspace) -> Sequence[Rule]:
    vocabulary = workspace.lineage.facts.vocab_size
    grown = "continues" in workspace.lineage["tokens"].record
    added = [Rule("the version adds training rows (if not: raise tokens.train)", "rows_added", 1, severity="warn")]
    return [
        Rule("ids lie in the vocabulary", "max_id", 0, vocabulary - 1),
        Rule("ids are not negative", "min_id", 0),
        Rule("the split holds documents", "documents", 1),
        Rule("the split holds rows", "rows", 1),
        Rule("rows equal the unmasked positions", "rows_minus_mask", 0, 0),
        Rule("no document is in both splits", "documents_in_both", 0, 0),
        Rule("the row budget is met", "budget_share", 0.99, severity="warn"),
        Rule("held-out windows seen in training", "overlap", maximum=0.2, severity="warn"),
        *(added if grown else []),
    ]


def _show(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.report import figures
    from sae_pipeline.tokens import Tokens

    tokens = Tokens.open(artefact)
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            document_lengths=lambda: figures.document_lengths(tokens.documents),
            context_lengths=lambda: figures.context_lengths(
                {name: tokens.split(name).lengths for name in ("train", "held_out")}
            ),
        ),
    }


TOKENS = Stage(
    asset="tokens",
    group="tokens",
    description="Documents, split by near-duplicate cluster, packed into contexts; training contexts permuted.",
    deps=(),
    by="study",
    make=_make,
    audit=_audit,
    rules=_rules,
    show=_show,
    index="split",
    kinds=frozenset({"zarr", "huggingface"}),
)
