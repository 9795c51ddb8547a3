"""How much held-out text also occurs, token for token, in training text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.tokens.rolling import run_hashes

WINDOW_TOKENS = 64


@dataclass(frozen=True)
class Overlap:
    """Windows of held-out text (at every offset) and how many of them occur in training text."""

    windows: int
    found: int
    by_document: tuple[float, ...]

    @property
    def share(self) -> float:
        """`found / windows`; 0 where no held-out document is as long as a window."""
        return self.found / self.windows if self.windows else 0.0


def window_overlap(
    held_out: Sequence[NDArray[np.integer]], training: Iterable[NDArray[np.integer]], *, window: int = WINDOW_TOKENS
) -> Overlap:
    """Share of the held-out documents' windows that occur in a training document; windows never cross documents.

    Memory is that of the held-out hashes; training documents are read once. `by_document` follows `held_out`.
    """
    hashes = [run_hashes(ids, window) for ids in held_out]
    wanted = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
    found = np.zeros(wanted.size, bool)
    for ids in training:
        if wanted.size:
            candidates = run_hashes(ids, window)
            at = np.minimum(np.searchsorted(wanted, candidates), wanted.size - 1)
            found[at[wanted[at] == candidates]] = True
    counts = [int(found[np.searchsorted(wanted, each)].sum()) for each in hashes]
    shares = tuple(count / each.size if each.size else 0.0 for count, each in zip(counts, hashes, strict=True))
    return Overlap(sum(each.size for each in hashes), sum(counts), shares)
