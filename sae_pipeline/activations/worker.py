"""Harvest by several processes, on one machine or on many that share a file system with working flocks.

Each gets a range of shards; ranges may overlap. Whoever comes first makes ready what all need, then they share the
drafts: a shard is made under a claim that ends with its process, so no two make it at once, and what a dead one was at
is made by another. None of them publishes: that is done by a run of the study, which finds the shards committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_pipeline.activations.harvesting import make_shards, prepare
from sae_pipeline.activations.takeover import Earlier
from sae_pipeline.store import Busy, Draft, Progress, silent
from sae_pipeline.study import ActivationsConfig, Site
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Tokens


@dataclass(frozen=True)
class Place:
    """Where a draft lies, and what for: the arguments of `Draft.open`."""

    path: Path
    stage: str
    key: str
    identity: str
    lineage: dict[str, Any]


def harvest_range(
    subject: Subject,
    tokens: Tokens,
    places: Mapping[Site, Place],
    config: ActivationsConfig,
    *,
    shards: range | None = None,
    earlier: Mapping[Site, Earlier | None] | None = None,
    keeping: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: Progress = silent,
) -> int:
    """Commit a range of shards of unpublished activations beside other processes; returns how many were made here.

    When it returns, all shards of the range are committed: those that another process was at were waited for.

    Args:
        subject: the loaded model.
        tokens: contexts to run it on.
        places: where the draft of each site lies. One is made where there is none.
        config: as for `harvest`.
        shards: the range; None: all.
        earlier: versions to take shards over from, by site.
        keeping: a context in which drafts are opened, e.g. `Outputs.keeping`.
        progress: told the tokens done.

    Raises:
        PipelineError: a site is published already, or its draft is another's.
        ActivationError: as for `harvest`.
    """
    with ExitStack() as stack:
        drafts: dict[Site, Draft] = {}
        for site, place in places.items():

            def ready(draft: Draft, site: Site = site) -> None:
                prepare(subject, tokens, {site: draft}, config, earlier=earlier, progress=progress)

            drafts[site] = stack.enter_context(_shared(place, ready, keeping))
        return make_shards(subject, tokens, drafts, config, progress=progress, shards=shards)


def _shared(
    place: Place, ready: Callable[[Draft], None], keeping: Callable[[], AbstractContextManager[object]]
) -> Draft:
    """Open a draft together with others: made ready by this process, or by another that is waited for."""
    while True:
        try:
            with keeping():
                draft = Draft.open(**vars(place))
        except Busy:
            if (joined := _joined(place, keeping)) is not None:
                return joined
            continue
        try:
            ready(draft)
            draft.share()
        except BaseException:
            draft.close()
            raise
        return draft


def _joined(place: Place, keeping: Callable[[], AbstractContextManager[object]]) -> Draft | None:
    """A draft that others share; None, after waiting for whoever holds it alone, if it has to be asked for again."""
    try:
        with keeping():
            return Draft.join(**vars(place))
    except Busy:
        Draft.wait(place.path)
        return None
