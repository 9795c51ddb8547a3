"""evaluation: the probe tasks of each site, with the subject's activations at their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.publishing import Job, Stage
from resources import Rule
from sae_pipeline.study import EMBEDDED_TASKS, probe_tasks

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace
    from sae_pipeline.evaluation.probes import ProbeData
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft


def probe_data(workspace: Workspace, site: str) -> ProbeData:
    """The published probe tasks of a site."""
    from sae_pipeline.evaluation.probes import ProbeData

    return ProbeData.open(workspace.artefact(f"probe_set/{site}"))


def _make(job: Job) -> Mapping[Node, dict[str, Any]]:
    """The same rows for all sites of the run."""
    from sae_pipeline.evaluation.probes import build_probe_data, make_probe_set
    from sae_pipeline.study import Site
    from sae_pipeline.subjects import load_tokenizer

    work, study = job.workspace, job.workspace.study
    probe_set = make_probe_set(
        probe_tasks(study.evaluation.metrics) or EMBEDDED_TASKS,
        study.subject,
        load_tokenizer(study.subject, root=work.root),
        context=study.tokens.context,
        seed=study.seed,
        root=work.root,
        progress=job.progress,
    )
    return {
        node: build_probe_data(
            draft,
            job.subject,
            Site.parse(node.name.partition("/")[2]),
            probe_set,
            batch=study.activations.micro_batch,
            seed=study.seed,
            progress=job.progress,
        )
        for node, draft in job.drafts.items()
    }


def _audit(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.evaluation.probes import audit_probe_data

    return audit_probe_data(draft)


def _rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("files are as committed", "damage", empty=True),
        Rule("every value is finite", "non_finite", 0, 0),
        Rule("no document is in both splits", "documents_in_both", 0, 0),
        Rule("a task has enough rows", "usable", 1),
        Rule("every task has enough rows", "usable", equals="tasks", severity="warn"),
    ]


def _show(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    return pictures.numbers(artefact.summary)


PROBE_SET = Stage(
    asset="probe_set",
    group="evaluation",
    description="Probe tasks, exact or from labelled lines: rows, activations, and controls that need no autoencoder.",
    deps=(),
    by="site",
    make=_make,
    audit=_audit,
    rules=_rules,
    show=_show,
    pool="gpu",
    kinds=frozenset({"zarr", "torch"}),
)
