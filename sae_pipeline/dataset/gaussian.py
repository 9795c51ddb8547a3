"""The Gaussian with the mean and covariance of a site's normalised rows, and endless seeded draws from it.

A null control: whatever an autoencoder finds in these draws follows from second moments alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from sae_pipeline.dataset.covariance import Covariance, Floats
from sae_pipeline.store import Artefact, Draft

NULL: Final = "gaussian_cov"
FILE: Final = "gaussian.safetensors"
RECORD: Final = "null.json"

Stream = Literal["training", "held_out", "sample"]
"""Draws of different streams are independent of each other."""

_STREAMS: Final[tuple[Stream, ...]] = ("training", "held_out", "sample")
_DRAWS: Final = 2**31 + 1  # keeps the draws' random numbers apart from those of the read order and its sample
_BLOCK_ROWS: Final = 256
_PER_COUNT: Final = 4  # numbers that Philox makes of one count


@dataclass(frozen=True)
class Gaussian:
    """Draws u = mean_d + root_dd z with z standard normal and root_dd the symmetric square root of Σ.

    The draw at a place of a stream is a function of (seed, stream, place) alone.
    """

    mean_d: Floats
    root_dd: Floats
    seed: int

    @classmethod
    def of(cls, covariance: Covariance, seed: int) -> Gaussian:
        """The Gaussian of these moments; Σ may be singular, as that of the `paper` normaliser is."""
        return cls(covariance.mean_d, symmetric_root(covariance.sigma_dd), seed)

    @classmethod
    def open(cls, artefact: Artefact) -> Gaussian:
        """The Gaussian of a published null dataset."""
        stored = load_file(artefact.file(FILE))
        return cls(stored["mean"], stored["root"], artefact.read_json(RECORD)["seed"])

    def write(self, draft: Draft, covariance: Covariance) -> None:
        """Store mean, covariance and root (float64), and what they are.

        The root is stored too: another LAPACK would find another one in the last bits, and so other draws.
        """
        tensors = {"mean": self.mean_d, "covariance": covariance.sigma_dd, "root": self.root_dd}
        draft.write_bytes(FILE, save(tensors))
        draft.write_json(RECORD, {"null": NULL, "seed": self.seed, "rows": covariance.count})

    def rows(self, stream: Stream, start: int, stop: int) -> Tensor:
        """The draws (stop - start, d) at the places `start` to `stop` of a stream, float32."""
        first = start // _BLOCK_ROWS
        blocks = [self._block(stream, i) for i in range(first, max(first + 1, -(-stop // _BLOCK_ROWS)))]
        skip = first * _BLOCK_ROWS
        return torch.from_numpy(np.concatenate(blocks)[start - skip : stop - skip])

    def _block(self, stream: Stream, index: int) -> npt.NDArray[np.float32]:
        """A whole block of the stream's grid: a product of one shape sums in one order, wherever a batch begins."""
        seeds = np.random.SeedSequence((self.seed, _DRAWS, _STREAMS.index(stream)))
        z_rd = standard_normals(seeds, index * _BLOCK_ROWS, _BLOCK_ROWS, len(self.mean_d))
        return (z_rd @ self.root_dd + self.mean_d).astype(np.float32)


def symmetric_root(sigma_dd: Floats) -> Floats:
    """The positive semi-definite L (d, d) with L L = Σ; unlike other roots it does not depend on signs or on order.

    Eigenvalues that rounding alone can make (below d · 2^-52 times the largest) count as 0.
    """
    values_e, vectors_de = np.linalg.eigh(sigma_dd)
    floor = len(values_e) * np.finfo(np.float64).eps * values_e[-1]
    root_e = np.sqrt(np.where(values_e > floor, values_e, 0.0))
    return np.asarray((vectors_de * root_e) @ vectors_de.T)


def standard_normals(seeds: np.random.SeedSequence, start: int, n: int, d: int) -> Floats:
    """Rows `start` to `start + n` (n, d) of an endless table of standard normal numbers.

    By Box & Muller (1958) from the raw output of Philox, which numpy guarantees never to change; every row takes a
    fixed number of counts, so that the table can be entered anywhere.
    """
    width = -(-d // _PER_COUNT) * _PER_COUNT
    source = np.random.Philox(seeds)
    source.advance(start * (width // _PER_COUNT))
    raw = source.random_raw(n * width).reshape(n, 2, width // 2)
    uniform = ((raw >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1), both ends left out
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, 0])), 2.0 * np.pi * uniform[:, 1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :d]


def gaussian_checks(
    gaussian: Gaussian, covariance: Covariance, sample_md: npt.NDArray[np.float32], total_variance: float
) -> dict[str, float]:
    """What the gate of a null dataset judges.

    covariance_rows       rows that the moments were taken of
    variance_error        |tr Σ - total_variance| / total_variance, the latter from the moments taken at harvest
    root_error            ‖L L - Σ‖ / ‖Σ‖ (Frobenius)
    sample_mean_error     m ‖mean of m draws - μ‖² / tr Σ; 1 on average over draws
    sample_covariance_error  m ‖S - Σ‖² / (tr Σ² + (tr Σ)²), S = E (u - μ)(u - μ)ᵀ over m draws; 1 on average
    """
    sigma_dd, root_dd = covariance.sigma_dd, gaussian.root_dd
    trace, square = float(np.trace(sigma_dd)), float(np.sum(sigma_dd**2))
    off_md = sample_md.astype(np.float64) - gaussian.mean_d
    m = len(off_md)
    found_dd = off_md.T @ off_md / max(1, m)
    return {
        "covariance_rows": covariance.count,
        "variance_error": _share(abs(trace - total_variance), total_variance),
        "root_error": _share(float(np.linalg.norm(root_dd @ root_dd - sigma_dd)), square**0.5),
        "sample_mean_error": _share(m * float(np.sum(off_md.mean(0) ** 2)), trace),
        "sample_covariance_error": _share(m * float(np.sum((found_dd - sigma_dd) ** 2)), square + trace**2),
    }


def _share(part: float, whole: float) -> float:
    # Rows that are all the same have no spread; another check says so.
    return part / whole if whole > 0 else part
