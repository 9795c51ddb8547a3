"""Building the evaluation set of a site: clean pass, mean, ablations, and the check that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.evaluation_set import ABLATIONS, CLEAN_ARRAYS, RECORD, REFERENCE_ARRAYS, EvaluationSet
from sae_pipeline.activations.layout import contexts_for_rows
from sae_pipeline.activations.micro_batch import (
    free_memory,
    halved,
    is_out_of_memory,
    record_micro_batch,
    settle_micro_batch,
)
from sae_pipeline.activations.moments import Moments
from sae_pipeline.activations.scoring import clean_scores, spliced_scores
from sae_pipeline.store import Draft, Progress, ShardedArray, silent
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Contexts, Tokens

Columns = dict[str, npt.NDArray[Any]]

_SHARD_BYTES: Final = 64 << 20
_CHUNK_CONTEXTS: Final = 16


def build_evaluation_set(
    subject: Subject,
    tokens: Tokens,
    site: Site,
    draft: Draft,
    *,
    n_tokens: int,
    micro_batch: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the evaluation set of a site; see `EvaluationSet` for what it holds.

    Takes the first whole documents of the held-out split that have `n_tokens` eligible positions. An interrupted build
    continues with the micro-batch that it was begun with. One that does not fit into memory is halved and the set begun
    again: its readers splice in the groups in which it was made, so all of it is made in one size.

    Args:
        subject: the loaded model.
        tokens: where the held-out contexts come from.
        site: where to read and to splice.
        draft: the open draft.
        n_tokens: eligible positions wanted; all there are, if there are fewer.
        micro_batch: contexts of one forward pass.
        progress: told the contexts done, over two passes.

    Returns:
        Summary: site, n_contexts, context, d, n_rows, n_documents, n_scored, micro_batch, resume_max_abs_difference
        (resumed against full logits of the first micro-batch; 0 unless something is wrong), clean_ce, zero_dce,
        mean_dce, zero_kl, mean_kl (nats per scored position).

    Raises:
        ActivationError: the held-out split has no eligible rows, or a single context does not fit into memory.
    """
    contexts = tokens.split("held_out")
    if not contexts.n_rows:
        raise ActivationError("the held-out split has no eligible rows; check tokens.held_out and tokens.exclude")
    size, n_contexts = settle_micro_batch([draft], micro_batch), contexts_for_rows(contexts, n_tokens)
    while (needed := _attempt(subject, site, contexts, draft, n_contexts, size, progress)) is not None:
        free_memory(subject.device)
        size = halved(size, needed)
        for name in (*CLEAN_ARRAYS, *REFERENCE_ARRAYS):
            draft.remove_array(name)
        record_micro_batch(draft, size)
    return summarise(EvaluationSet(draft))


def _attempt(
    subject: Subject, site: Site, contexts: Contexts, draft: Draft, n: int, micro_batch: int, progress: Progress
) -> str | None:
    """Build the set; what torch said where memory did not suffice, None where it did."""
    build = _Build(subject, site, contexts, draft, n, micro_batch, progress)
    try:
        build.clean()
        moments = build.moments()
        build.ablate(moments)
        draft.write_json(RECORD, build.record(moments))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error)
    return None


class _Build:
    """One evaluation set while it is made: two passes over the held-out contexts, shard by shard."""

    def __init__(
        self,
        subject: Subject,
        site: Site,
        contexts: Contexts,
        draft: Draft,
        n: int,
        micro_batch: int,
        progress: Progress,
    ) -> None:
        self._subject, self._site, self._contexts, self._progress, self._n = subject, site, contexts, progress, n
        self._micro_batch = micro_batch
        self._arrays = _arrays(draft, n, contexts.context, subject.width(site), self._micro_batch)

    def clean(self) -> None:
        """Run the untouched model: activations and scores of every position."""
        self._fill(CLEAN_ARRAYS, self._clean_columns, contexts_before=0)

    def ablate(self, moments: Moments) -> None:
        """Run the model with zero and with the mean in place of the eligible activations."""
        mean_d = torch.from_numpy(moments.mean).float()
        fills = {"zero": torch.zeros_like(mean_d), "mean": mean_d}
        self._fill(REFERENCE_ARRAYS, lambda a, b: self._ablated_columns(a, b, fills), contexts_before=self._n)

    def moments(self) -> Moments:
        """Moments of the eligible rows, merged in the order of the shards."""
        residuals = self._arrays["residuals"]
        return Moments.total(
            (Moments.of(self._eligible(residuals.rows(i))) for i in range(residuals.n_shards)), d=residuals.shape[2]
        )

    def record(self, moments: Moments) -> dict[str, Any]:
        """What a reader has to know beside the arrays."""
        return {
            "site": str(self._site),
            "n_contexts": self._n,
            "context": self._contexts.context,
            "d": len(moments.mean),
            "n_rows": moments.count + moments.non_finite,
            "non_finite": moments.non_finite,
            "micro_batch": self._micro_batch,
            "resume_max_abs_difference": self._resume_difference(),
            "mean": moments.mean.tolist(),
        }

    def _fill(self, names: tuple[str, ...], columns: Callable[[int, int], Columns], *, contexts_before: int) -> None:
        """Write the shards of some arrays that are not all committed yet, computed in whole micro-batches."""
        arrays = {name: self._arrays[name] for name in names}
        first = arrays[names[0]]
        for i in range(first.n_shards):
            if all(array.is_committed(i) for array in arrays.values()):
                continue
            parts = []
            for a, b in _groups(first.rows(i), self._micro_batch):
                parts.append(columns(a, b))
                self._progress.update(contexts_before + b, 2 * self._n, "contexts", site=str(self._site))
            for name, array in arrays.items():
                array.write_shard(i, np.concatenate([part[name] for part in parts]).astype(array.dtype, copy=False))

    def _clean_columns(self, a: int, b: int) -> Columns:
        ids_cl = torch.from_numpy(self._contexts.ids(a, b))
        value_cld = self._subject.run(ids_cl, [self._site])[self._site].float()
        # Scored through `resume`, as every splice will be; `record` holds it equal to the full forward pass.
        ce_cl, logsumexp_cl = clean_scores(self._subject.resume(self._site, value_cld, ids_cl), ids_cl)
        length_c = self._contexts.lengths[a:b]
        has_next_cl = np.arange(1, ids_cl.shape[1] + 1) < length_c[:, None]
        return {
            "residuals": value_cld.cpu().numpy(),
            "ids": ids_cl.numpy(),
            "mask": self._contexts.row_mask(a, b),
            "length": length_c,
            "document": self._contexts.document[a:b],
            "clean_ce": np.where(has_next_cl, ce_cl.cpu().numpy(), np.nan),
            "clean_logsumexp": logsumexp_cl.cpu().numpy(),
        }

    def _ablated_columns(self, a: int, b: int, fills: dict[str, Tensor]) -> Columns:
        ids_cl = torch.from_numpy(self._arrays["ids"].read(a, b).astype(np.int64))
        mask_cl1 = torch.from_numpy(self._arrays["mask"].read(a, b))[..., None]
        value_cld = self._stored(slice(a, b))
        clean_clv = self._subject.resume(self._site, value_cld, ids_cl)
        columns: Columns = {}
        for ablation, fill_d in fills.items():
            logits_clv = self._subject.resume(self._site, torch.where(mask_cl1, fill_d, value_cld), ids_cl)
            ce_cl, kl_cl = spliced_scores(clean_clv, logits_clv, ids_cl)
            columns |= {f"{ablation}_ce": ce_cl.cpu().numpy(), f"{ablation}_kl": kl_cl.cpu().numpy()}
        return columns

    def _resume_difference(self) -> float:
        """Largest |full - resumed| logit of the first micro-batch, with the activations as stored."""
        a, b = 0, min(self._micro_batch, self._n)
        ids_cl = torch.from_numpy(self._contexts.ids(a, b))
        resumed_clv = self._subject.resume(self._site, self._stored(slice(a, b)), ids_cl)
        return float((self._subject.logits(ids_cl) - resumed_clv).abs().max())

    def _stored(self, contexts: slice) -> Tensor:
        return torch.from_numpy(self._arrays["residuals"].read_float32(contexts.start, contexts.stop))

    def _eligible(self, contexts: slice) -> Tensor:
        return self._stored(contexts)[torch.from_numpy(self._arrays["mask"].read(contexts.start, contexts.stop))]


def _groups(contexts: slice, size: int) -> Iterator[tuple[int, int]]:
    for start in range(contexts.start, contexts.stop, size):
        yield start, min(start + size, contexts.stop)


def _arrays(draft: Draft, n: int, context: int, d: int, micro_batch: int) -> dict[str, ShardedArray]:
    """Shards of whole micro-batches, about 64 MiB of activations each; small chunks: Zarr fills up the last one."""
    chunk = math.gcd(micro_batch, _CHUNK_CONTEXTS)
    shard = micro_batch * max(1, _SHARD_BYTES // (micro_batch * context * d * 4))
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "residuals": ((n, context, d), "float32"),
        "ids": ((n, context), "int32"),
        "mask": ((n, context), "bool"),
        "length": ((n,), "int32"),
        "document": ((n,), "int32"),
    }
    scores = {name: ((n, context), "float32") for name in ("clean_ce", "clean_logsumexp", *REFERENCE_ARRAYS)}
    return {
        name: draft.array(name, shape=shape, dtype=dtype, shard_rows=shard, chunk_rows=chunk)
        for name, (shape, dtype) in (shapes | scores).items()
    }


def summarise(evaluation_set: EvaluationSet) -> dict[str, Any]:
    """The figures of an evaluation set that `build_evaluation_set` returns."""
    references = evaluation_set.references
    scored_cl = evaluation_set.scored(0, evaluation_set.n_contexts).numpy()
    clean_ce = float(evaluation_set.clean_ce[scored_cl].mean(dtype=np.float64))
    summary: dict[str, Any] = {
        "site": str(evaluation_set.site),
        "n_contexts": evaluation_set.n_contexts,
        "context": evaluation_set.context,
        "d": evaluation_set.d,
        "n_rows": evaluation_set.n_rows,
        "n_documents": len(np.unique(evaluation_set.document)),
        "n_scored": int(scored_cl.sum()),
        "micro_batch": evaluation_set.micro_batch,
        "resume_max_abs_difference": evaluation_set.resume_max_abs_difference,
        "clean_ce": clean_ce,
    }
    for ablation in ABLATIONS:
        of_ablation = references[references["ablation"] == ablation]
        ce_sum, kl_sum, n = (float(of_ablation[column].sum()) for column in ("ce_sum", "kl_sum", "n"))
        summary |= {f"{ablation}_dce": ce_sum / n - clean_ce, f"{ablation}_kl": kl_sum / n}
    return summary
