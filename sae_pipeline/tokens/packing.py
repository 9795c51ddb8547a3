"""Packing: documents cut into contexts of token ids, and which positions of a context become rows.

A context belongs to one document. Where the policy says so it begins with a BOS token; the last context of a document
is padded on the right, so that causal attention never sees the padding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import PipelineError
from sae_pipeline.study import TokensConfig
from sae_pipeline.tokens.sampling import drawn
from sae_pipeline.tokens.tokenizer import Tokenizer

_CHUNK = 1 << 14  # contexts gathered at a time when rows are counted


@dataclass(frozen=True)
class Layout:
    """How one study packs: context length, BOS policy, excluded positions, special ids.

    `per_context`, in training: at most so many rows of a context, drawn by `seed`; both None where all are taken.
    """

    context: int
    bos: str
    exclude: tuple[str, ...]
    bos_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    per_context: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, config: TokensConfig, tokenizer: Tokenizer, *, seed: int) -> Layout:
        """The layout of a study; PipelineError if the tokenizer lacks what its policy needs."""
        return cls(
            context=config.context,
            bos=config.bos,
            exclude=tuple(config.exclude),
            bos_id=tokenizer.bos_id,
            pad_id=tokenizer.pad_id,
            special_ids=tuple(sorted(tokenizer.special_ids)),
            per_context=config.per_context,
            seed=None if config.per_context is None else seed,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Layout:
        """The layout that `to_json` wrote, among other entries."""
        return cls(
            context=value["context"],
            bos=value["bos"],
            exclude=tuple(value["exclude"]),
            bos_id=value["bos_id"],
            pad_id=value["pad_id"],
            special_ids=tuple(value["special_ids"]),
            per_context=value.get("per_context"),
            seed=value.get("seed"),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values; rows drawn of a context are not mentioned where all are taken."""
        optional = ("per_context", "seed")
        return {name: item for name, item in asdict(self).items() if item is not None or name not in optional}

    @property
    def whole(self) -> Layout:
        """The same with all rows of a context: that of the held-out split."""
        return replace(self, per_context=None, seed=None)

    def __post_init__(self) -> None:
        if self.bos != "none" and self.bos_id is None:
            raise PipelineError(f"tokens.bos is {self.bos}, but the tokenizer has no BOS token; set tokens.bos: none")
        if self.context < 2:
            raise PipelineError(f"tokens.context is {self.context}; a context needs at least 2 tokens")

    def prefixed(self, start_c: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which contexts begin with BOS, by the document position of their first token."""
        if self.bos == "document_start":
            return np.asarray(start_c == 0)
        return np.full(start_c.shape, self.bos == "every_context")

    def row_mask(self, ids_cl: NDArray[np.integer], packed: Packed) -> NDArray[np.bool_]:
        """Positions that become activation rows, `[c, L]`: never padding, not what `exclude` names, those drawn."""
        mask = np.arange(ids_cl.shape[1]) < packed.length[:, None]
        if "bos" in self.exclude:
            mask[self.prefixed(packed.start), 0] = False
        if "special" in self.exclude:
            mask &= ~np.isin(ids_cl, self.special_ids)
        if self.per_context is not None and self.seed is not None and self.per_context < mask.shape[1]:
            mask &= drawn(mask, packed.document, packed.start, n=self.per_context, seed=self.seed)
        return mask


@dataclass(frozen=True)
class Packed:
    """Contexts as slices of documents, one entry each.

    `document`: its index. `start`: position of the context's first token in the document, BOS not counted. `length`:
    tokens including BOS.
    """

    document: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]

    def __len__(self) -> int:
        return self.document.size

    def __getitem__(self, at: Any) -> Packed:
        return Packed(*(getattr(self, field.name)[at] for field in fields(self)))


def pack(n_tokens_d: NDArray[np.int64], layout: Layout) -> Packed:
    """Cut documents of `n_tokens_d` (each ≥ 1) tokens into contexts, in document order."""
    first_holds = layout.context - (layout.bos != "none")
    rest_hold = layout.context - (layout.bos == "every_context")
    n_contexts_d = 1 + -(-np.maximum(0, n_tokens_d - first_holds) // rest_hold)
    document = np.repeat(np.arange(n_tokens_d.size), n_contexts_d)
    number = np.arange(document.size) - np.repeat(np.cumsum(n_contexts_d) - n_contexts_d, n_contexts_d)
    start = np.where(number == 0, 0, first_holds + (number - 1) * rest_hold)
    holds = np.where(number == 0, first_holds, rest_hold)
    length = np.minimum(holds, n_tokens_d[document] - start) + layout.prefixed(start)
    return Packed(document.astype(np.int32), start.astype(np.int32), length.astype(np.int32))


def gather(flat: NDArray[np.integer], offset_d: NDArray[np.int64], packed: Packed, layout: Layout) -> NDArray[np.int64]:
    """Token ids of contexts, `[c, L]`, padded with `pad_id`; `flat[offset_d[i]:]` begins with document i's tokens."""
    prefix_c = layout.prefixed(packed.start).astype(np.int64)
    column = np.arange(layout.context)
    real_cl = (column >= prefix_c[:, None]) & (column < packed.length[:, None])
    at_cl = (offset_d[packed.document] + packed.start - prefix_c)[:, None] + column
    ids_cl = np.full(real_cl.shape, layout.pad_id, dtype=np.int64)
    ids_cl[real_cl] = flat[at_cl[real_cl]]
    if layout.bos_id is not None:
        ids_cl[prefix_c == 1, 0] = layout.bos_id
    return ids_cl


def count_rows(
    flat: NDArray[np.integer], offset_d: NDArray[np.int64], packed: Packed, layout: Layout
) -> NDArray[np.int64]:
    """Rows that each context yields, `[c]`."""
    counts = np.zeros(len(packed), np.int64)
    for at in range(0, len(packed), _CHUNK):
        part = packed[at : at + _CHUNK]
        ids_cl = gather(flat, offset_d, part, layout)
        counts[at : at + _CHUNK] = layout.row_mask(ids_cl, part).sum(axis=1)
    return counts
