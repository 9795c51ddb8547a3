"""How often 95 % intervals hold the truth: sets of simulated documents, of unequal length, whose tokens are alike.

`make soak` runs it whole; `python -m tests.evaluation.coverage [SEED]` alone, and puts it into soak.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import binom

from sae_pipeline.evaluation import Comparison, compare_paired
from sae_pipeline.evaluation.bootstrap import LEVEL, Uncertainty, resampled_ratios, uncertainty

FloatArray = NDArray[np.float64]
Record = dict[str, Any]

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "soak.json"
DATA_SETS, RESAMPLES = 1000, 1000
VALUE, GAIN = 0.3, 0.02
"""What is to be estimated: the ratio of an autoencoder, and by how much that of another is larger."""
TOKENS, LENGTHS = 40.0, 0.8
"""Mean length of a document, and the standard deviation of its logarithm: that of the demo's held-out documents."""
BETWEEN, WITHIN, PERSISTENCE = 0.06, 0.15, 0.8
"""Standard deviations of a document's own level and of its tokens about it, each like the one before (AR 1)."""


@dataclass(frozen=True)
class Cell:
    """A kind of data set: how many documents, and whether a few of them are far above the rest."""

    documents: int
    skewed: bool = False


EXACT = tuple(Cell(documents) for documents in (20, 50, 200))
"""The interval is to hold the truth as often as it says."""
ENOUGH = tuple(Cell(documents) for documents in (5, 10))
"""It is to hold the truth at least as often: so few documents do not tell their spread well."""
SHOWN = tuple(Cell(documents, skewed=True) for documents in (20, 200))
"""How often it does is reported: of a few documents far above the rest a sample without them cannot tell."""
WITH_TOKENS = Cell(20)


@dataclass(frozen=True)
class DataSet:
    """Sums over documents [u] of the terms of two ratios, and the terms of the first one by token [t]."""

    num_u: FloatArray
    other_num_u: FloatArray
    den_u: FloatArray
    num_t: FloatArray
    den_t: FloatArray


def draw(rng: np.random.Generator, cell: Cell) -> DataSet:
    """One data set. E[num] / E[den] is VALUE, and VALUE + GAIN of the other, whose documents are as difficult."""
    u = cell.documents
    lengths_u = np.maximum(1, np.rint(TOKENS * np.exp(LENGTHS * rng.standard_normal(u) - LENGTHS**2 / 2))).astype(int)
    level_u = 2 * (rng.exponential(size=u) - 1) if cell.skewed else rng.standard_normal(u)
    own_u = rng.standard_normal(u)
    noise_t = np.concatenate([_autoregression(rng, length) for length in lengths_u])
    den_t = rng.gamma(4.0, size=len(noise_t)) / 4
    num_t = den_t * (VALUE + BETWEEN * np.repeat(level_u, lengths_u) + WITHIN * noise_t)
    starts_u = np.concatenate([[0], np.cumsum(lengths_u)[:-1]])
    num_u, den_u = (np.add.reduceat(terms, starts_u) for terms in (num_t, den_t))
    return DataSet(num_u, num_u + den_u * (GAIN + BETWEEN / 5 * own_u), den_u, num_t, den_t)


def _autoregression(rng: np.random.Generator, length: int) -> FloatArray:
    """Values of variance 1, each PERSISTENCE times the one before and something new."""
    new = np.sqrt(1 - PERSISTENCE**2) * rng.standard_normal(length)
    new[0] = rng.standard_normal()
    return np.asarray(lfilter([1.0], [1.0, -PERSISTENCE], new))


def by_document(drawn: DataSet, resamples: int, seed: int) -> bool:
    """The pipeline's interval."""
    return _holds(uncertainty(drawn.num_u[:, None], drawn.den_u[:, None], resamples, seed)[0], VALUE)


def by_token(drawn: DataSet, resamples: int, seed: int) -> bool:
    """The pipeline's interval, were every token a document."""
    return _holds(uncertainty(drawn.num_t[:, None], drawn.den_t[:, None], resamples, seed)[0], VALUE)


def paired(drawn: DataSet, resamples: int, seed: int) -> bool:
    """The pipeline's interval of a difference."""
    return _holds(compare_paired(*_unit_stats(drawn), resamples, seed), -GAIN)


def percentiles(drawn: DataSet, resamples: int, seed: int) -> bool:
    """The percentiles of resampled documents alone."""
    ratios = resampled_ratios(drawn.num_u[:, None], drawn.den_u[:, None], resamples, seed)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return bool(low <= VALUE <= high)


WAYS = {"documents": by_document, "paired": paired, "percentiles": percentiles, "tokens": by_token}
"""Ways of making an interval: whether the one of a data set holds the truth."""


def _holds(found: Uncertainty | Comparison, truth: float) -> bool:
    return found.ci_lo <= truth <= found.ci_hi


def _unit_stats(drawn: DataSet) -> list[pd.DataFrame]:
    about = {"metric": "nmse", "variant": "all", "unit_id": range(len(drawn.den_u)), "den": drawn.den_u}
    return [pd.DataFrame({**about, "num": num_u}) for num_u in (drawn.num_u, drawn.other_num_u)]


def measure(cell: Cell, data_sets: int, resamples: int, seed: int, ways: Iterable[str]) -> dict[str, float]:
    """Share of data sets whose interval holds the truth, by way of making it."""
    rng = np.random.default_rng([seed, cell.documents, cell.skewed])
    drawn = [draw(rng, cell) for _ in range(data_sets)]
    return {way: sum(WAYS[way](one, resamples, i) for i, one in enumerate(drawn)) / data_sets for way in ways}


def bound(data_sets: int) -> tuple[float, float]:
    """Between which shares that of an interval that holds the truth in 95 % of all cases lies, in 95 % of all cases."""
    low, high = binom.ppf([0.025, 0.975], data_sets, LEVEL)
    return low / data_sets, high / data_sets


def misses(cell: Cell, found: Mapping[str, float], data_sets: int) -> list[str]:
    """What is not as it should be."""
    low, high = bound(data_sets)
    wrong = [
        f"{cell}: the interval of {way} holds the truth in {found[way]:.1%}"
        for way in {"documents", "paired"} & set(found)
        if not low <= found[way] <= (high if cell in EXACT else 1.0)
    ]
    if found.get("tokens", 0.0) >= low:
        wrong.append(f"{cell}: resampled tokens hold the truth in {found['tokens']:.1%}, as they should not")
    return wrong


def trials(seed: int) -> Record:
    """All cells, whole."""
    started_s = time.monotonic()
    found = {
        cell: measure(cell, DATA_SETS, RESAMPLES, seed, WAYS if cell == WITH_TOKENS else [*WAYS][:-1])
        for cell in (*EXACT, *ENOUGH, *SHOWN)
    }
    return {
        "data_sets": DATA_SETS,
        "resamples": RESAMPLES,
        "bound": bound(DATA_SETS),
        "cells": [{**asdict(cell), "judged": cell not in SHOWN, "held": shares} for cell, shares in found.items()],
        "seconds": round(time.monotonic() - started_s),
        "failures": [line for cell in (*EXACT, *ENOUGH) for line in misses(cell, found[cell], DATA_SETS)],
    }


def main(seed: int) -> int:
    """The trials alone; the rest of soak.json stays. The exit status."""
    record = trials(seed)
    result = json.loads(RESULT.read_text())
    RESULT.write_text(json.dumps(result | {"coverage": record}, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
