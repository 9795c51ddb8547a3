"""The evaluation set of a site as published: everything a metric needs that depends on no autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.store import Artefact, Draft
from sae_pipeline.study import Site

RECORD: Final = "evaluation_set.json"
ABLATIONS: Final = ("zero", "mean")
CLEAN_ARRAYS: Final = ("residuals", "ids", "mask", "length", "document", "clean_ce", "clean_logsumexp")
REFERENCE_ARRAYS: Final = tuple(f"{ablation}_{score}" for ablation in ABLATIONS for score in ("ce", "kl"))


class EvaluationSet:
    """Held-out contexts, whole documents in order, with the site's activations and the clean model's scores.

    Attributes:
        site: where the activations were read.
        n_contexts: contexts, each of `context` positions, right-padded.
        context: positions of a context.
        d: width of the site.
        n_rows: eligible positions (not padding, not excluded by the token policy).
        micro_batch: contexts of one forward pass; splice in the same groups to compare bit by bit.
        mean_d: [d] float64, mean activation over the eligible positions.
        position: [context] 0, 1, …
    """

    def __init__(self, source: Artefact | Draft) -> None:
        record = source.read_json(RECORD)
        self._source = source
        self.site = Site.parse(record["site"])
        self.n_contexts: int = record["n_contexts"]
        self.context: int = record["context"]
        self.d: int = record["d"]
        self.n_rows: int = record["n_rows"]
        self.micro_batch: int = record["micro_batch"]
        self.resume_max_abs_difference: float = record["resume_max_abs_difference"]
        self.mean_d: npt.NDArray[np.float64] = np.array(record["mean"], np.float64)
        self.position: npt.NDArray[np.int64] = np.arange(self.context)
        self._residuals = source.array("residuals")

    @classmethod
    def open(cls, artefact: Artefact) -> EvaluationSet:
        """Read a published `evaluation_set` artefact."""
        return cls(artefact)

    def micro_batches(self) -> Iterator[tuple[int, int]]:
        """The ranges of contexts that the clean model was run on together."""
        for start in range(0, self.n_contexts, self.micro_batch):
            yield start, min(start + self.micro_batch, self.n_contexts)

    def ids(self, a: int, b: int) -> Tensor:
        """Token ids [b - a, context] int64 of contexts a to b."""
        return torch.from_numpy(self._all("ids")[a:b].astype(np.int64))

    def mask(self, a: int, b: int) -> Tensor:
        """Eligible positions [b - a, context]: those that are encoded, spliced and averaged."""
        return torch.from_numpy(self._all("mask")[a:b].copy())

    def scored(self, a: int, b: int) -> Tensor:
        """Eligible positions [b - a, context] with a next token: the ones that losses and KL are summed over."""
        return torch.from_numpy(self._scored()[a:b].copy())

    def residuals(self, a: int, b: int) -> Tensor:
        """Activations [b - a, context, d] of every position, padding included, as the subject computed them."""
        return torch.from_numpy(self._residuals.read_float32(a, b))

    def rows(self, a: int, b: int) -> tuple[Tensor, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Raw activations [rows, d] float32 of the eligible positions of contexts a to b; documents; positions."""
        mask_cl = self.mask(a, b)
        context_r, position_r = np.nonzero(mask_cl.numpy())
        return self.residuals(a, b)[mask_cl], self.document[a:b][context_r], position_r

    @cached_property
    def document(self) -> npt.NDArray[np.int64]:
        """[n_contexts] index of each context's document among the tokens' documents."""
        return self._all("document").astype(np.int64)

    @property
    def length(self) -> npt.NDArray[np.int64]:
        """[n_contexts] tokens of each context; padding fills the rest."""
        return self._all("length").astype(np.int64)

    @property
    def clean_ce(self) -> npt.NDArray[np.float32]:
        """[n_contexts, context] cross-entropy of the untouched model in nats, NaN where there is no next token."""
        return self._all("clean_ce")

    @property
    def clean_logsumexp(self) -> npt.NDArray[np.float32]:
        """[n_contexts, context] logsumexp of the untouched model's logits."""
        return self._all("clean_logsumexp")

    @cached_property
    def references(self) -> pd.DataFrame:
        """Zero- and mean-ablation per document over the scored positions, where the eligible positions are replaced.

        Columns: document, ablation (`zero`, `mean`), ce_sum (cross-entropy of the ablated model, nats), kl_sum
        (KL(clean ‖ ablated), nats), n (positions summed).
        """
        scored_cl = self._scored()
        documents, group_r = np.unique(self.document[np.nonzero(scored_cl)[0]], return_inverse=True)
        parts = []
        for ablation in ABLATIONS:
            sums = {
                f"{score}_sum": np.bincount(group_r, self._all(f"{ablation}_{score}")[scored_cl].astype(np.float64))
                for score in ("ce", "kl")
            }
            parts.append(pd.DataFrame({"document": documents, "ablation": ablation, **sums, "n": np.bincount(group_r)}))
        return pd.concat(parts, ignore_index=True)

    def _scored(self) -> npt.NDArray[np.bool_]:
        has_next_cl = self.position[None, :] + 1 < self._all("length")[:, None]
        return np.asarray(self._all("mask") & has_next_cl)

    def _all(self, name: str) -> npt.NDArray[Any]:
        """A small array as a whole, kept."""
        if name not in self._cache:
            array = self._source.array(name)
            self._cache[name] = array.read(0, array.n_rows)
        return self._cache[name]

    @cached_property
    def _cache(self) -> dict[str, npt.NDArray[Any]]:
        return {}
