"""Where the last verdicts of a study's gates lie."""

from __future__ import annotations

GATES = "gates"
"""Folder, below a study's, with the last verdicts of every node."""


def gate_file(node: str) -> str:
    """Name of the file with a node's last verdicts."""
    return f"{node.replace('/', '--')}.json"
