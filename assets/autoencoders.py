"""autoencoders: all members of a site train on one read of the activations; each is gated and published alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.dataset import held_out
from assets.interrupts import interrupts_between_steps
from assets.publishing import Job, Stage
from resources import Rule

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from resources.workspace import Workspace
    from sae_pipeline.activations import Window
    from sae_pipeline.dataset import Dataset
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft
    from sae_pipeline.training import Member, OnRow


def _dataset(workspace: Workspace, site: str, window: Window | None = None) -> Dataset:
    from sae_pipeline.dataset import Dataset

    return Dataset.open(workspace.artefact(f"dataset/{site}"), workspace.artefact(f"activations/{site}"), window)


def _window(job: Job, site: str) -> AbstractContextManager[Window | None]:
    """What makes the activations that were not retained; nothing where all are there, or draws take their place."""
    from sae_pipeline.activations import Window, open_activations
    from sae_pipeline.study import Site
    from sae_pipeline.tokens import Tokens

    work = job.workspace
    activations = work.artefact(f"activations/{site}")
    acts = open_activations(activations)
    if acts.n_kept == acts.n_shards or work.study.dataset.null is not None:
        return nullcontext()
    return Window(
        activations,
        Site.parse(site),
        Tokens.open(work.artefact("tokens")),
        job.subject,
        work.study.activations,
        resident_shards=work.study.dataset.resident_shards,
    )


@functools.lru_cache(maxsize=1)
def _held_out(workspace: Workspace, site: str) -> Tensor:
    """Held-out rows of a site, normalised as its autoencoders expect; all members of a site are audited on them."""
    evaluation_set, _ = held_out(workspace, site)
    x_rd, _, _ = evaluation_set.rows(0, evaluation_set.n_contexts)
    u_rd, _ = _dataset(workspace, site).normaliser.normalise(x_rd)
    return u_rd


def _milestone_rows(workspace: Workspace, site: str) -> Tensor | None:
    from sae_pipeline.training import MILESTONE_ROWS

    return None if workspace.study.training.milestones is None else _held_out(workspace, site)[:MILESTONE_ROWS]


@contextmanager
def _board(workspace: Workspace, site: str) -> Iterator[OnRow | None]:
    from sae_pipeline.training.board import Board

    if "tensorboard" not in workspace.study.training.log:
        yield None
        return
    with closing(Board(workspace.study_dir / "tensorboard" / site)) as board:
        yield board.write


def _make(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.store import reuse_freed_memory
    from sae_pipeline.subjects import pick_device
    from sae_pipeline.training import train

    reuse_freed_memory(map_large=True)
    work = job.workspace
    by_site: dict[str, dict[str, Node]] = {}
    for node in job.drafts:
        _, site, key = node.name.split("/")
        by_site.setdefault(site, {})[key] = node
    summaries: dict[Node, dict[str, Any]] = {}
    for site, nodes in by_site.items():
        with interrupts_between_steps() as interrupted, _window(job, site) as window, _board(work, site) as on_row:
            outcomes = train(
                {key: _member(work, site, node, job.drafts[node]) for key, node in nodes.items()},
                _dataset(work, site, window),
                device=pick_device(work.study.subject.device),
                checkpoint_every_s=work.study.training.checkpoint_every,
                progress=job.progress,
                should_stop=interrupted,
                held_out_xd=_milestone_rows(work, site),
                stop_if=work.study.training.stop_if,
                on_row=on_row,
                memory_bytes=work.study.training.memory,
            )
            if window is not None and all(outcome.status != "stopped" for outcome in outcomes.values()):
                window.end()
        for key, outcome in outcomes.items():
            if outcome.status == "finished":
                summaries[nodes[key]] = outcome.figures
            else:
                job.failures[nodes[key]] = outcome.error or f"{outcome.status} after {outcome.tokens:,} tokens"
    return summaries


def _member(work: Workspace, site: str, node: Node, draft: Draft) -> Member:
    from sae_pipeline.autoencoders import Autoencoder
    from sae_pipeline.training import Member

    spec = work.lineage.spec(node)
    parent = spec.parent and Autoencoder.load(work.artefact(f"autoencoder/{site}/{spec.parent}").path)
    return Member(spec, draft, parent or None)


def _audit(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.training import audit_frame

    return audit_frame(draft, _held_out(job.workspace, node.name.split("/")[1]))


def _rules(workspace: Workspace) -> Sequence[Rule]:
    gates = workspace.study.gates
    return [
        Rule("weights and codes are finite", "non_finite", 0, 0),
        Rule("decoder rows have unit norm", "decoder_norm_error", 0, 1e-4),
        Rule("L0 ≤ k on every token", "max_l0", at_most="k"),
        Rule("better than predicting the mean", "nmse", maximum=gates.nmse_max),
        Rule("the whole budget was trained", "tokens", equals="tokens_expected"),
        Rule("dead latents", "dead", maximum=gates.dead, severity="warn"),
        Rule("mean L0 close to k", "mean_l0_share", minimum=gates.mean_l0_share, severity="warn"),
        Rule("skipped steps", "skipped_steps", maximum=0, severity="warn"),
    ]


def _show(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    import pandas as pd

    from sae_pipeline.report import figures

    log = pd.read_parquet(artefact.file("training.parquet"))
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            error=lambda: figures.training_curve(log, "nmse"), dead=lambda: figures.training_curve(log, "dead")
        ),
    }


AUTOENCODER = Stage(
    asset="autoencoder",
    group="autoencoders",
    description="One sparse autoencoder per site and key; a range trains as one sweep over one read of the data.",
    deps=("dataset", "evaluation_set"),
    by="autoencoder",
    make=_make,
    audit=_audit,
    rules=_rules,
    show=_show,
    index="autoencoder",
    pool="gpu",
    kinds=frozenset({"torch"}),
)
