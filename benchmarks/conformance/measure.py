"""Ask one package every question and compare its answers with the references: `measure.py ADAPTER`, JSON on stdout.

Runs under the interpreter of the package's own environment, which needs PyTorch and NumPy beside the package. An
adapter is a module with one function for each check that the package has something for, from a scenario to arrays,
and with NOTES on cells of the table.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NamedTuple

import numpy as np
from checks import CHECKS, Check
from notes import Note
from references import Arrays
from scenarios import scenarios

TOLERANCE = 1e-5  # some packages compute parts in float32, whatever they are given


class Comparison(NamedTuple):
    """Largest difference of an array from its reference, over the reference's largest entry, and which array it is."""

    difference: float
    where: str


def compare(found: Arrays, expected: Arrays) -> Comparison:
    """Over all arrays (a package may lack b_pre); one that should be 0 is measured by the largest of the others."""
    if not set(expected) - {"b_pre"} <= set(found) <= set(expected):
        raise ValueError(f"found {sorted(found)}, expected {sorted(expected)}")
    scale = max(np.abs(value).max() for value in expected.values()) or 1.0

    def difference(name: str) -> float:
        error = np.abs(np.asarray(found[name], dtype=np.float64) - expected[name]).max()
        return float(error / (np.abs(expected[name]).max() or scale))

    worst = max(found, key=difference)
    return Comparison(difference(worst), worst)


def cell(check: Check, adapter: Any, note: Note) -> dict[str, Any]:
    """Verdict, numbers and note of one package on one question."""
    if not hasattr(adapter, check.function):
        return {"verdict": "not there", "note": note.text}
    sets = scenarios()
    try:
        found = check.answers(adapter, sets)
    except Exception as error:  # whatever goes wrong in another's package is its answer
        return {"verdict": "could not be run", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    difference, where = compare(found, check.expected(sets, note.convention))
    if difference <= TOLERANCE:
        return {"verdict": "agrees", "difference": difference, "note": "" if note.difference else note.text}
    explained = compare(found, check.expected(sets, {**note.convention, **note.difference})).difference
    known = explained <= TOLERANCE
    text = note.text if known else "not explained"
    return {"verdict": "differs", "difference": difference, "where": where, "note": text, "explained": explained}


def main() -> None:
    """One adapter, whatever it prints kept apart from the result."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name = sys.argv[1]
    try:
        adapter = importlib.import_module(name)
    except Exception as error:
        failed = {"verdict": "could not be run", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
        cells = {check.key: failed for check in CHECKS}
    else:
        cells = {check.key: cell(check, adapter, adapter.NOTES.get(check.key, Note(""))) for check in CHECKS}
    checks = [{"key": check.key, "title": check.title, "source": check.source} for check in CHECKS]
    with out:
        json.dump({"tolerance": TOLERANCE, "checks": checks, "cells": cells}, out)


if __name__ == "__main__":
    main()
