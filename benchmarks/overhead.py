"""What Dagster costs: its share of a study's wall time, and how long the code location takes to load.

Runs the study (default demo, about eight minutes) from nothing in a temporary folder and times what the stages
themselves do; the rest is Dagster's. Writes results/overhead.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
LOADS = 5
spent_s: Counter[str] = Counter()


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its wall time added to `spent_s`; none of those timed here calls another."""

    def run(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent_s[name] += time.perf_counter() - started

    return run


def load_seconds() -> list[float]:
    """Seconds until a fresh process has imported the code location."""
    command, seconds = [sys.executable, "-c", "import sae_pipeline.definitions"], []
    for _ in range(LOADS):
        started = time.perf_counter()
        subprocess.run(command, cwd=CHECKOUT, check=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def run_study_timed(study: str, folder: Path) -> float:
    """Wall time of a whole study, in seconds; the stages' own parts are in `spent_s`."""
    import dagster as dg

    from assets import publishing, stages
    from assets.launching import prepare_instance, run_study
    from resources import StudyGraph, ValidatorResource
    from sae_pipeline import definitions
    from sae_pipeline.store import Draft

    plain = stages.stages_of
    names = {"make": "work", "audit": "gates", "show": "plots", "place": "work"}

    def instrumented(graph: StudyGraph) -> list[publishing.Stage]:
        return [
            dataclasses.replace(
                stage,
                **{field: timed(name, getattr(stage, field)) for field, name in names.items() if getattr(stage, field)},
            )
            for stage in plain(graph)
        ]

    definitions.stages_of = instrumented
    ValidatorResource.validate = timed("gates", ValidatorResource.validate)
    Draft.publish = timed("work", Draft.publish)
    graph = StudyGraph.read(CHECKOUT / "studies" / f"{study}.yaml", (), folder / "outputs")
    (folder / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "home")) as instance:
        defs = definitions.build_definitions(graph)
        prepare_instance(graph, instance)
        _ = timed("planning", lambda: graph.workspace.lineage)()
        started = time.perf_counter()
        failure = run_study(defs, graph, instance)
        if failure:
            raise SystemExit(failure)
        return time.perf_counter() - started


def main() -> None:
    study = sys.argv[1] if len(sys.argv) > 1 else "demo"
    os.environ["SAE_STUDY"] = study
    loads = load_seconds()
    with tempfile.TemporaryDirectory() as folder:
        total_s = run_study_timed(study, Path(folder))
    inside_s = sum(seconds for name, seconds in spent_s.items() if name != "planning")
    result = {
        "study": study,
        "load_s": {"median": statistics.median(loads), "min": min(loads), "max": max(loads)},
        "wall_s": total_s,
        "stages_s": dict(spent_s),
        "dagster_share": 1 - inside_s / total_s,
    }
    (CHECKOUT / "benchmarks" / "results" / "overhead.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
