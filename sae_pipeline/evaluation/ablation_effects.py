"""What small changes of one activation do to the logits at its position and the ones that follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject

LOGITS: Final = 1 << 24
"""Logits in memory at once, 64 MiB in float32; a pass holds at least one change and the base."""

_TILE: Final = 1 << 18
"""Logits whose statistics are taken together: they stay in a core's cache."""

_SAMPLE_STEP: Final = 16


@dataclass(frozen=True)
class Effects:
    """How the effects v [T, V] of m changes are spread; a change without any effect has NaN.

    Attributes:
        first_m: (‖v‖₁ / ‖v‖₂)² / V of the first position alone.
        window_m: (‖v‖₁ / ‖v‖₂)² / (T·V) of all T positions (Gao et al. 2024 §4.5).
        share_mt: [m, T] share of ‖v‖₂² that lies at each position.
        positions_m: the same ratio of the norms of the T positions, over T: 1/T where one position has all of it.
        vocabulary_m: the same ratio of the norms of the V tokens, over V.
    """

    first_m: Tensor
    window_m: Tensor
    share_mt: Tensor
    positions_m: Tensor
    vocabulary_m: Tensor

    @classmethod
    def of(cls, logits_mtv: Tensor, base_tv: Tensor) -> Effects:
        """Of logits [m, T, V], m > 0, against those without the change; the median of each position is taken off first.

        `logits_mtv` is overwritten.
        """
        length, vocabulary = base_tv.shape
        tiles = torch.split(logits_mtv, max(1, _TILE // base_tv.numel()))
        scratch_mtv = torch.empty_like(tiles[0])
        parts = [_sums(tile_mtv.sub_(base_tv), scratch_mtv[: len(tile_mtv)]) for tile_mtv in tiles]
        sum_mt, square_mt, token_norms_m = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
        square_m = square_mt.sum(1)
        return cls(
            sum_mt[:, 0].square() / square_mt[:, 0] / vocabulary,
            sum_mt.sum(1).square() / square_m / (length * vocabulary),
            square_mt / square_m[:, None],
            square_mt.sqrt().sum(1).square() / square_m / length,
            token_norms_m.square() / square_m / vocabulary,
        )

    @classmethod
    def join(cls, parts: list[Effects]) -> Effects:
        """The effects of further changes after those of the first."""
        columns = zip(*((p.first_m, p.window_m, p.share_mt, p.positions_m, p.vocabulary_m) for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


class Position:
    """Position t of a context and the T − 1 that follow it; the t before it are run once."""

    def __init__(self, subject: Subject, site: Site, value_ld: Tensor, ids_l: Tensor, t: int) -> None:
        """Take the activations [t + T, d] and ids [t + T] of the context's first positions."""
        self._subject, self._site = subject, site
        self._value_td, self._ids_t = value_ld[t:], ids_l[t:]
        self._prefix = subject.prefix(site, value_ld[:t], ids_l[:t]) if t else None

    def logits(self, x_md: Tensor) -> Tensor:
        """Logits [m, T, V] with each of `x_md` in turn as the activation at t."""
        value_mtd = self._value_td.expand(len(x_md), -1, -1).clone()
        value_mtd[:, 0] = x_md
        return self._subject.resume(self._site, value_mtd, self._ids_t.expand(len(x_md), -1), after=self._prefix)

    def effects(self, base_d: Tensor, change_md: Tensor) -> Effects:
        """The effects of adding each change to the activation `base_d`."""
        return Effects.join(
            [Effects.of(logits_mtv[1:], logits_mtv[0]) for logits_mtv in self._chunks(base_d, change_md)]
        )

    def _chunks(self, base_d: Tensor, change_md: Tensor) -> Iterator[Tensor]:
        """Logits of the base and some changes at a time: in one batch their roundings are alike and cancel."""
        most = max(1, LOGITS // (len(self._ids_t) * self._subject.card.vocab_size) - 1)
        for some_md in torch.chunk(change_md, -(-len(change_md) // most)):
            yield self.logits(torch.cat([base_d[None], base_d + some_md]))


def _sums(v_mtv: Tensor, scratch_mtv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖v‖₁ and ‖v‖₂² of each position [m, T], and Σ over tokens of their norms over the positions [m].

    Both arguments are overwritten: fresh memory for each tile would cost more than the arithmetic.
    """
    v_mtv -= _median(v_mtv)
    sum_mt = torch.abs(v_mtv, out=scratch_mtv).sum(2)
    square_mtv = v_mtv.square_()
    return sum_mt, square_mtv.sum(2), square_mtv.sum(1).sqrt_().sum(1)


def _median(v_mtv: Tensor) -> Tensor:
    """The lower median over the vocabulary [m, T, 1]; `torch.median` takes five times as long on a processor."""
    if v_mtv.device.type != "cpu":
        return v_mtv.median(2, keepdim=True).values
    rows_rv = v_mtv.flatten(0, 1).numpy()
    samples_rs = np.sort(rows_rv[:, ::_SAMPLE_STEP], axis=1)
    medians = [_median_of(v, sample) for v, sample in zip(rows_rv, samples_rs, strict=True)]
    return v_mtv.new_tensor(medians).view(*v_mtv.shape[:2], 1)


def _median_of(v: NDArray[Any], sample: NDArray[Any]) -> float:
    """Selected among the values between two of a sorted sample around it; among all if it is not there.

    A count of all values below the sample's own median says how many places of the sample the true one is away; over j
    places that is known to about √j, so that three times as many on either side nearly always hold it.
    """
    middle, centre = (len(v) - 1) // 2, len(sample) // 2
    away = (middle - int(np.count_nonzero(v < sample[centre]))) / _SAMPLE_STEP
    reach = 3 * abs(away) ** 0.5 + 2
    low, high = (sample[min(max(0, int(centre + away + by)), len(sample) - 1)] for by in (-reach, reach + 1))
    from_low = v >= low
    between = v[from_low & (v <= high)]
    place = middle - (len(v) - int(np.count_nonzero(from_low)))
    if not 0 <= place < len(between):
        between, place = v.copy(), middle
    between.partition(place)
    return float(between[place])
