"""From spans of characters to labels of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
Labels = NDArray[np.bool_]


def anchors(text: str, offsets: Sequence[Span]) -> NDArray[np.int64]:
    """The character that decides a token's labels, `[tokens]`.

    It is the token's first character that is no white space, or its first one if there is no other. A token that is a
    part of a character (byte-level tokenizers) is decided by that character.

    Args:
        text: the text.
        offsets: half-open span of each token in characters, as `SubjectTokenizer.encode_with_offsets` gives it.
    """
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    solid = np.flatnonzero(~np.char.isspace(np.array(list(text), "<U1")))
    after = np.append(solid, len(text))[np.searchsorted(solid, spans[:, 0])]
    return np.where(after < spans[:, 1], after, spans[:, 0])


def token_labels(spans: Mapping[str, Sequence[Span]], anchor_t: NDArray[np.int64]) -> Labels:
    """Whether each token belongs to each concept, `[concepts, tokens]`: whether its anchor lies in one of the spans.

    Args:
        spans: sorted disjoint spans of each concept, as `concept_spans` gives them.
        anchor_t: the tokens' anchors.
    """
    found = np.zeros((len(spans), anchor_t.size), np.bool_)
    for labels_t, places in zip(found, spans.values(), strict=True):
        if places:
            starts, ends = np.asarray(places).T
            at = np.searchsorted(starts, anchor_t, side="right") - 1
            labels_t[:] = (at >= 0) & (anchor_t < ends[at])
    return found
