"""Harvest: the subject's activations on the training split, as committed shards."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.activations.errors import ActivationError, ActivationOverflow
from sae_pipeline.activations.layout import (
    ACTS,
    HARVEST,
    TORCH_DTYPES,
    Span,
    check_shard_bytes,
    shard_rows_of,
    span_of,
)
from sae_pipeline.activations.moments import Moments
from sae_pipeline.activations.takeover import Earlier, take_over
from sae_pipeline.activations.writer import BackgroundTasks
from sae_pipeline.store import Draft, Progress, ShardedArray, silent
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
    micro-batch. Each commit carries the shard's moments and its contexts. A shard that an earlier version of a site
    already holds is taken over, bit for bit, without running the model (see `takeover`).

    Args:
        subject: the loaded model.
        tokens: contexts to run it on.
        drafts: one open draft per site; each gets the array `acts` (rows, width).
        config: storage dtype, rows of a shard, contexts of one forward pass.
        earlier: versions to take shards over from, by site.
        progress: told the tokens done.
        shards: make these shards only, to divide the work among processes.

    Raises:
        ActivationOverflow: a finite value does not fit into float16; nothing infinite is written in its place.
        ActivationError: there are no rows, or a shard would be too large.
    """
    contexts = tokens.split("train")
    if not contexts.n_rows:
        raise ActivationError("the training split has no eligible rows; check tokens.exclude and the corpora")
    shard_rows = shard_rows_of(tokens.sized_by_rows, config.shard_tokens)
    arrays = {site: _array(draft, subject.width(site), contexts, shard_rows, config) for site, draft in drafts.items()}
    micro_batch = settle_micro_batch(drafts.values(), config.micro_batch)
    wanted = shards if shards is not None else range(next(iter(arrays.values())).n_shards)
    for site, draft in drafts.items():
        take_over(draft, contexts, (earlier or {}).get(site), wanted, progress=progress)
    missing = {i: [site for site, array in arrays.items() if not array.is_committed(i)] for i in wanted}
    missing = {i: sites for i, sites in missing.items() if sites}
    pace = _Pace(progress, contexts, done=contexts.n_rows - _rows_in(arrays, missing))
    with BackgroundTasks() as writer:
        for i, sites in missing.items():
            span = span_of(contexts.row_offsets, next(iter(arrays.values())).rows(i))
            shard = _Shard(i, span, {site: arrays[site] for site in sites}, config.dtype)
            for ids_cl, mask_cl in micro_batches(contexts, span.first, span.last, micro_batch):
                values = subject.run(ids_cl, sites)
                pace.advance(shard.add(values, mask_cl), shard=i)
            writer.submit(shard.write)


def settle_micro_batch(drafts: Collection[Draft], wanted: int) -> int:
    """Reuse the micro-batch that drafts were begun with, or record `wanted` in those that are new.

    Raises:
        ActivationError: the drafts were begun with different ones, so no pass can continue them together.
    """
    found = {int(draft.read_json(HARVEST)["micro_batch"]) for draft in drafts if draft.exists(HARVEST)}
    if len(found) > 1:
        raise ActivationError(f"drafts begun with micro-batches of {sorted(found)} contexts must be harvested apart")
    micro_batch = found.pop() if found else wanted
    for draft in drafts:
        if not draft.exists(HARVEST):
            draft.write_json(HARVEST, {"micro_batch": micro_batch})
    return micro_batch


def micro_batches(contexts: Contexts, first: int, last: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids [c, L] and eligibility [c, L] of contexts `first` to `last`, `size` at a time; read in one go."""
    ids_cl = torch.from_numpy(contexts.ids(first, last))
    mask_cl = torch.from_numpy(contexts.row_mask(first, last))
    for start in range(0, last - first, size):
        yield ids_cl[start : start + size], mask_cl[start : start + size]


def _array(draft: Draft, width: int, contexts: Contexts, shard_rows: int, config: ActivationsConfig) -> ShardedArray:
    check_shard_bytes(shard_rows, width, config.dtype)
    return draft.array(ACTS, shape=(contexts.n_rows, width), dtype=config.dtype, shard_rows=shard_rows)


def _rows_in(arrays: Mapping[Site, ShardedArray], shards: Mapping[int, list[Site]]) -> int:
    array = next(iter(arrays.values()))
    return sum(array.rows(i).stop - array.rows(i).start for i in shards)


class _Pace:
    """Progress over all shards, in tokens."""

    def __init__(self, progress: Progress, contexts: Contexts, *, done: int) -> None:
        self._progress, self._total, self._done = progress, contexts.n_rows, done

    def advance(self, rows: int, **info: object) -> None:
        self._done += rows
        self._progress.update(self._done, self._total, "tokens", **info)


class _Shard:
    """Shard i of several sites while it fills up."""

    def __init__(self, i: int, span: Span, arrays: dict[Site, ShardedArray], dtype: str) -> None:
        self._i, self._span, self._arrays, self._dtype = i, span, arrays, TORCH_DTYPES[dtype]
        rows = next(iter(arrays.values())).rows(i)
        self._n: int = rows.stop - rows.start
        self._skip, self._filled = span.skip, 0
        self._rows = {site: torch.empty(self._n, array.shape[1], dtype=self._dtype) for site, array in arrays.items()}

    def add(self, values: Mapping[Site, Tensor], mask_cl: Tensor) -> int:
        """Take over the eligible rows of a micro-batch that belong to this shard; returns how many."""
        eligible = int(mask_cl.sum())
        start = min(self._skip, eligible)
        taken = min(eligible - start, self._n - self._filled)
        self._skip -= start
        for site, value_cld in values.items():
            all_rows = mask_cl.numel() == eligible  # the usual case needs no gather
            x_rd = value_cld.flatten(0, 1) if all_rows else value_cld[mask_cl.to(value_cld.device)]
            self._rows[site][self._filled : self._filled + taken] = self._stored(site, x_rd[start : start + taken])
        self._filled += taken
        return taken

    def _stored(self, site: Site, x_rd: Tensor) -> Tensor:
        stored_rd = x_rd.to(self._dtype)
        if self._dtype == torch.float16 and not bool(stored_rd.isfinite().all()):
            lost = stored_rd.isinf() & x_rd.isfinite()
            if bool(lost.any()):
                raise ActivationOverflow(
                    f"site {site}, shard {self._i}: an activation of {float(x_rd[lost].abs().max()):.6g} exceeds "
                    f"float16's largest value, {torch.finfo(torch.float16).max:.0f}; "
                    "set activations.dtype to bfloat16 or float32"
                )
        return stored_rd

    def write(self) -> None:
        """Commit the shard at every site, with moments of the rows as stored."""
        for site, array in self._arrays.items():
            rows = self._rows.pop(site)
            info = {"moments": Moments.of(rows).to_json(), "contexts": [self._span.first, self._span.last]}
            array.write_shard(self._i, to_numpy(rows), info)


def to_numpy(rows: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The bits of a CPU tensor as the store keeps them (bfloat16 as uint16)."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
