"""The corpus every Python user already has: the source text of the running interpreter's standard library.

Generated tables (`encodings/`, `pydoc_data/topics.py`), grammar fixtures (`lib2to3/tests`) and build records that name
the builder's own directories (`_sysconfigdata*`) are left out. Distributions without `test/` give a smaller corpus.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sae_pipeline.tokens.documents import Document

MIN_CHARACTERS = 500  # shorter files are package markers and one-line shims
_SKIPPED_DIRS = frozenset({"site-packages", "dist-packages", "__pycache__", "encodings"})
_SKIPPED_PATHS = ("pydoc_data/topics.py", "lib2to3/tests/")


def stdlib_dir() -> Path:
    """Directory of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_paths(root: Path | None = None) -> list[Path]:
    """The corpus's .py files under `root` (default: `stdlib_dir()`), sorted by relative path."""
    root = root or stdlib_dir()
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_DIRS]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    kept = [path for path in found if _is_kept(path.relative_to(root).as_posix())]
    return sorted(kept, key=lambda path: path.relative_to(root).as_posix())


def _is_kept(name: str) -> bool:
    return not name.startswith(_SKIPPED_PATHS) and not name.startswith("_sysconfigdata")


def stdlib_documents(root: Path | None = None, *, corpus: str = "stdlib") -> Iterator[Document]:
    """Yield the library's files as documents named by relative path; tiny ones and those not in UTF-8 are skipped."""
    root = root or stdlib_dir()
    for path in stdlib_paths(root):
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # test files written in other encodings on purpose
        if len(text) >= MIN_CHARACTERS:
            yield Document(path.relative_to(root).as_posix(), text, corpus)
