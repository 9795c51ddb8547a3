"""What an adapter says of a cell, and what proves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Note:
    """text: in a sentence.

    convention: options of the reference that are a choice of architecture, not of method; the cell is compared with
    the reference under those. difference: further options that make the reference compute what the package does:
    where the cell differs, the text stands only if they do.
    """

    text: str
    convention: dict[str, Any] = field(default_factory=dict)
    difference: dict[str, Any] = field(default_factory=dict)
