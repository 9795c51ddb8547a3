"""Harvest: the subject's activations on the training split, as committed shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.layout import ACTS, check_shard_bytes, shard_rows_of, span_of
from sae_pipeline.activations.micro_batch import MICRO_BATCH, settle_micro_batch
from sae_pipeline.activations.moments import Moments
from sae_pipeline.activations.outliers import OUTLIERS, PREFIX_ROWS, OutlierLimit, settle_limit
from sae_pipeline.activations.passes import Passes
from sae_pipeline.activations.takeover import Earlier, made_alike, same_start, take_over
from sae_pipeline.activations.writer import BackgroundTasks
from sae_pipeline.store import Draft, Progress, silent
from sae_pipeline.study import ActivationsConfig, Site
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Contexts, Tokens


def harvest(
    subject: Subject,
    tokens: Tokens,
    drafts: Mapping[Site, Draft],
    config: ActivationsConfig,
    *,
    earlier: Mapping[Site, Earlier | None] | None = None,
    progress: Progress = silent,
    shards: range | None = None,
) -> None:
    """Write the activations of the training split at several sites, in one pass that stops after the last of them.

    Shard i of every site holds rows [i * shard_rows, (i + 1) * shard_rows) of the eligible positions in context order.
    It is computed from the contexts that contain them, in micro-batches counted from the first of these, so it depends
    on i alone and not on what was computed before. Committed shards are skipped; a draft that was begun keeps its
    micro-batch, and one that does not fit into memory is halved for this shard and those after it. Each commit carries
    the shard's moments, its contexts, its micro-batch and, where asked for, its outliers. A shard that an earlier
    version of a site already holds is taken over, bit for bit, without running the model (see `takeover`).

    Args:
        subject: the loaded model.
        tokens: contexts to run it on.
        drafts: one open draft per site; each gets the array `acts` (rows, width).
        config: storage dtype, rows of a shard, contexts of one forward pass, outliers.
        earlier: versions to take shards over from, by site.
        progress: told the tokens done.
        shards: make these shards only. Several processes divide the work with `harvest_range`.

    Raises:
        ActivationOverflow: a finite value does not fit into float16; nothing infinite is written in its place.
        ActivationError: there are no rows, a shard would be too large, or a single context does not fit into memory.
    """
    prepare(subject, tokens, drafts, config, earlier=earlier, progress=progress, shards=shards)
    make_shards(subject, tokens, drafts, config, progress=progress, shards=shards)


def prepare(
    subject: Subject,
    tokens: Tokens,
    drafts: Mapping[Site, Draft],
    config: ActivationsConfig,
    *,
    earlier: Mapping[Site, Earlier | None] | None = None,
    progress: Progress = silent,
    shards: range | None = None,
) -> None:
    """Make what the drafts need before any shard: array, micro-batch, limit for outliers; take shards over.

    Arguments and errors as for `harvest`. Drafts may be open alone only; nothing is changed in one that is ready.
    """
    contexts, versions = _training(tokens), dict(earlier or {})
    shard_rows = shard_rows_of(tokens.sized_by_rows, config.shard_tokens)
    for site, draft in drafts.items():
        check_shard_bytes(shard_rows, subject.width(site), config.dtype)
        shape = (contexts.n_rows, subject.width(site))
        draft.array(ACTS, shape=shape, dtype=config.dtype, shard_rows=shard_rows, codec=config.codec or "none")
    alike = {site: made_alike(draft, versions.get(site)) for site, draft in drafts.items()}
    found = [version.activations for version in alike.values() if version is not None]
    micro_batch = settle_micro_batch(drafts.values(), config.micro_batch, found)
    for site, draft in drafts.items():
        passes = Passes(subject, contexts, [draft], dtype=config.dtype, micro_batch=micro_batch)
        _settle_outliers(passes, contexts, site, draft, config, alike[site])
        wanted = range(draft.array(ACTS).n_shards) if shards is None else shards
        take_over(draft, contexts, alike[site], wanted, progress=progress)


def make_shards(
    subject: Subject,
    tokens: Tokens,
    drafts: Mapping[Site, Draft],
    config: ActivationsConfig,
    *,
    progress: Progress = silent,
    shards: range | None = None,
) -> int:
    """Commit those shards of prepared drafts that are not committed; returns how many were made here.

    One that another process has claimed is left to it, and looked at again at the end, waiting for that process to be
    done or dead: afterwards all are committed. Arguments and errors as for `harvest`.
    """
    contexts = _training(tokens)
    micro_batch = settle_micro_batch(drafts.values(), config.micro_batch)
    passes = Passes(subject, contexts, drafts.values(), dtype=config.dtype, micro_batch=micro_batch)
    return _Maker(passes, contexts, drafts, progress).run(shards)


def _training(tokens: Tokens) -> Contexts:
    contexts = tokens.split("train")
    if not contexts.n_rows:
        raise ActivationError("the training split has no eligible rows; check tokens.exclude and the corpora")
    return contexts


def _settle_outliers(
    passes: Passes, contexts: Contexts, site: Site, draft: Draft, config: ActivationsConfig, earlier: Earlier | None
) -> None:
    if config.outliers is None:
        return
    multiple, known = config.outliers.norm_over_median, None
    if earlier is not None and (found := OutlierLimit.of(earlier.activations)) is not None:
        known = found if same_start(contexts, earlier.tokens, found.rows) else None

    def measure() -> OutlierLimit:
        prefix = slice(0, min(PREFIX_ROWS, contexts.n_rows))
        return OutlierLimit.measure(passes.rows(prefix, [site], lambda _: None)[site], multiple)

    settle_limit(draft, known, measure)


class _Maker:
    """Makes and commits shards of several sites; the next is computed while one is written."""

    def __init__(self, passes: Passes, contexts: Contexts, drafts: Mapping[Site, Draft], progress: Progress) -> None:
        self._passes, self._contexts, self._drafts, self._progress = passes, contexts, drafts, progress
        self._arrays = {site: draft.array(ACTS) for site, draft in drafts.items()}
        self._limits = {site: OutlierLimit.of(draft) for site, draft in drafts.items()}

    def run(self, shards: range | None) -> int:
        array = next(iter(self._arrays.values()))
        wanted = range(array.n_shards) if shards is None else shards
        missing = [i for i in wanted if self._missing(i, self._arrays)]
        rows = sum(array.rows(i).stop - array.rows(i).start for i in missing)
        pace = _Pace(self._progress, self._contexts, done=self._contexts.n_rows - rows)
        left: list[tuple[int, Site]] = []
        n_made = 0
        with BackgroundTasks() as writer:
            for i in missing:
                claims = ExitStack()
                sites = self._claimed(i, claims)
                left += [(i, site) for site in self._missing(i, self._arrays) if site not in sites]
                if sites:
                    writer.submit(self._made(i, sites, claims, pace))
                    n_made += 1
        return n_made + sum(self._made_after_all(i, site, pace) for i, site in left)

    def _missing(self, i: int, sites: Iterable[Site]) -> list[Site]:
        return [site for site in sites if not self._arrays[site].is_committed(i)]

    def _claimed(self, i: int, claims: ExitStack) -> list[Site]:
        """Sites at which the shard is this process's to make."""
        found = []
        for site in self._missing(i, self._arrays):
            if (claim := self._drafts[site].claim(ACTS, i)) is not None:
                claims.enter_context(claim)
                found.append(site)
        return self._missing(i, found)  # another may have committed it before it gave the claim back

    def _made_after_all(self, i: int, site: Site, pace: _Pace) -> bool:
        """Wait for whoever has claimed a shard; make it if that process died of it."""
        pace.waits(i)
        with ExitStack() as claims:
            claims.enter_context(self._drafts[site].claim(ACTS, i, wait=True) or nullcontext())
            if lost := self._missing(i, [site]):
                self._made(i, lost, claims, pace)()
        return bool(lost)

    def _made(self, i: int, sites: list[Site], claims: ExitStack, pace: _Pace) -> Callable[[], None]:
        """Compute a shard; the task that commits it, with moments and outliers as stored, and ends the claims."""
        wanted = self._arrays[sites[0]].rows(i)
        span = span_of(self._contexts.row_offsets, wanted)
        rows = self._passes.rows(wanted, sites, partial(pace.advance, shard=i))
        info = {"contexts": [span.first, span.last], MICRO_BATCH: self._passes.micro_batch}

        def commit() -> None:
            with claims:
                for site in sites:
                    x_rd = rows.pop(site)
                    found = {} if (limit := self._limits[site]) is None else {OUTLIERS: limit.find(x_rd)}
                    moments = Moments.of(x_rd).to_json()
                    self._arrays[site].write_shard(i, to_numpy(x_rd), {"moments": moments, **info, **found})

        return commit


class _Pace:
    """Progress over all shards, in tokens."""

    def __init__(self, progress: Progress, contexts: Contexts, *, done: int) -> None:
        self._progress, self._total, self._done = progress, contexts.n_rows, done

    def advance(self, rows: int, **info: object) -> None:
        self._done += rows
        self._progress.update(self._done, self._total, "tokens", **info)

    def waits(self, shard: int) -> None:
        self.advance(0, waits_for=shard)


def to_numpy(rows: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The bits of a CPU tensor as the store keeps them (bfloat16 as uint16)."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
