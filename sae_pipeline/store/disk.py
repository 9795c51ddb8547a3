"""What lies on the disk, counted while others may be writing there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones too; links are not followed."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def disk_use(path: Path) -> tuple[int, float]:
    """Bytes of a file, or of all files below a folder, and when one of them last changed (Unix time); 0 if nothing.

    What vanishes meanwhile is not counted.
    """
    n_bytes, newest_s = 0, 0.0
    for file in [path, *files_below(path)]:
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        n_bytes += 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        newest_s = max(newest_s, found.st_mtime)
    return n_bytes, newest_s


def human_bytes(n_bytes: float) -> str:
    """A size with three digits: 950 B, 12.4 MB, 1.3 TB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= 0.9995 * size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} B"
