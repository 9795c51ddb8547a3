"""What "bit-equal" means for two output folders: every byte, but for a short list of provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

TIMES = {
    "artefact.json": {"checksum", "created_at", "train_s"},
    "training.json": {"train_s"},
    "config.json": {"train_s"},
    "training.parquet": {"tokens_per_s", "flops_per_s", "data_wait", "eta_s"},
    "index.html": {"train s"},
}
"""By name of a file: the fields and columns that tell when something was made and how long it took.

`artefact.json` repeats size and hash of every file; those of the other files named here follow from the times in them.
"""


def differences(one: Path, other: Path) -> list[str]:
    """What tells two output folders apart, one line per file; empty if they are bit-equal.

    Locks and temporaries (hidden files) are no part of an artefact and are passed over.
    """
    ours, theirs = _files(one), _files(other)
    missing = [f"{name}: only in {folder}" for name, folder in _unshared(ours, theirs, one, other)]
    shared = sorted(set(ours) & set(theirs))
    return missing + [f"{name}: differs" for name in shared if not _alike(ours[name], theirs[name])]


def _files(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path for name, path in found.items() if not any(p.startswith(".") for p in name.parts)}


def _unshared(ours: dict[str, Path], theirs: dict[str, Path], one: Path, other: Path) -> Iterator[tuple[str, Path]]:
    yield from ((name, one) for name in sorted(set(ours) - set(theirs)))
    yield from ((name, other) for name in sorted(set(theirs) - set(ours)))


def _alike(a: Path, b: Path) -> bool:
    if a.read_bytes() == b.read_bytes():
        return True
    if a.name not in TIMES:
        return False
    if a.suffix == ".html":
        return _without_figures(a) == _without_figures(b)
    if a.suffix == ".parquet":
        return _without_columns(a).equals(_without_columns(b))
    return bool(_timeless(json.loads(a.read_text()), a.name) == _timeless(json.loads(b.read_text()), b.name))


def _without_figures(path: Path) -> str:
    """The page without the number that follows the name of a figure: `train s 0.25;`."""
    names = "|".join(sorted(TIMES[path.name]))
    return re.sub(rf"\b({names}) [0-9.e+-]+", r"\1", path.read_text())


def _without_columns(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).drop(columns=sorted(TIMES[path.name]))


def _timeless(value: Any, name: str) -> Any:
    """A JSON value without the fields that `TIMES` names, at any depth; an artefact without the seals of such files."""
    if isinstance(value, list):
        return [_timeless(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _timeless(item, name) for key, item in value.items() if key not in TIMES[name]}
    if name == "artefact.json" and isinstance(kept.get("files"), dict):
        kept["files"] = {file: None if Path(file).name in TIMES else seal for file, seal in kept["files"].items()}
    return kept
