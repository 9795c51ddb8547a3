"""What one document gives to a probe set: some of its contexts, and balanced rows in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.embedded.concepts.labels import Span
from sae_pipeline.embedded.concepts.probe_set import Flags, Ints
from sae_pipeline.embedded.concepts.sampling import Sampling, choose_contexts, draw_balanced, generator
from sae_pipeline.embedded.concepts.spans import CATALOGUE
from sae_pipeline.tokens.packing import Layout, Packed, gather, pack
from sae_pipeline.tokens.tokenizer import Tokenizer


class OffsetTokenizer(Tokenizer, Protocol):
    """A tokenizer that says where its tokens stand."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of a text, and for each token its half-open span in characters."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Contexts of one document, and rows over them: concept (index in the catalogue), context, position, label."""

    name: str
    split: str
    ids_cl: NDArray[np.int32]
    length_c: Ints
    concept_r: Ints
    context_r: Ints
    position_r: Ints
    label_r: Flags


def layout_for(tokenizer: Tokenizer, context: int) -> Layout:
    """Contexts as the tokens stage packs them: the first of a document begins with BOS, where there is one."""
    bos = "none" if tokenizer.bos_id is None else "document_start"
    return Layout(context, bos, (), tokenizer.bos_id, tokenizer.pad_id, ())


def draw(name: str, split: str, ids: list[int], labels_kt: Flags, layout: Layout, sampling: Sampling) -> Drawn:
    """Choose contexts of a document and rows in them.

    Args:
        name: the document, which decides the draw with the seed and the concept.
        split: its side.
        ids: its token ids.
        labels_kt: whether each token belongs to each concept of the catalogue.
        layout: how it is cut into contexts.
        sampling: what to take.
    """
    packed = pack(np.array([len(ids)]), layout)
    context_t, position_t = _places(packed, layout, len(ids))
    eligible_kt = position_t >= _first_positions(sampling)[:, None]
    offers_kt = labels_kt & eligible_kt
    holds_kc = np.stack([np.bincount(context_t[offers_t], minlength=len(packed)) > 0 for offers_t in offers_kt])
    kept = choose_contexts(holds_kc, sampling.contexts_per_document, generator(sampling.seed, name))
    eligible_kt &= np.isin(context_t, kept)
    concept_r, token_r, label_r = _rows(name, labels_kt, eligible_kt, sampling)
    return Drawn(
        name=name,
        split=split,
        ids_cl=gather(np.asarray(ids), np.zeros(1, np.int64), packed[kept], layout).astype(np.int32),
        length_c=packed.length[kept].astype(np.int64),
        concept_r=concept_r,
        context_r=np.searchsorted(kept, context_t[token_r]),
        position_r=position_t[token_r],
        label_r=label_r,
    )


def _places(packed: Packed, layout: Layout, n_tokens: int) -> tuple[Ints, Ints]:
    """Context and position in it of every token of a document."""
    token_t = np.arange(n_tokens)
    context_t = np.searchsorted(packed.start, token_t, side="right") - 1
    return context_t, token_t - packed.start[context_t] + layout.prefixed(packed.start)[context_t]


def _first_positions(sampling: Sampling) -> Ints:
    late, early = sampling.first_position_long_range, sampling.first_position
    return np.array([late if concept.long_range else early for concept in CATALOGUE])


def _rows(name: str, labels_kt: Flags, eligible_kt: Flags, sampling: Sampling) -> tuple[Ints, Ints, Flags]:
    """Concept, token and label of each row."""
    half = sampling.rows_per_document // 2
    concepts, tokens, labels = [], [], []
    for k, concept in enumerate(CATALOGUE):
        random = generator(sampling.seed, name, concept.name)
        positive, negative = draw_balanced(labels_kt[k], eligible_kt[k], half, random)
        concepts.append(np.full(2 * positive.size, k))
        tokens += [positive, negative]
        labels.append(np.arange(2 * positive.size) < positive.size)
    return np.concatenate(concepts), np.concatenate(tokens), np.concatenate(labels)
