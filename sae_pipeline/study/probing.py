"""Which probe tasks a study asks for: what the metric `probes` reads, and what alone needs them made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PROBES: Final = "probes"
"""Name of the metric."""

EMBEDDED_TASKS: Final = "embedded"
"""Name of the tasks whose labels a parser computes from the standard library's source (docs/probe_tasks.md)."""


def probe_tasks(metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Source of the tasks that a study's metrics name: `embedded`, or files; None where nothing is probed."""
    return None if PROBES not in metrics else metrics[PROBES].get("tasks", EMBEDDED_TASKS)
