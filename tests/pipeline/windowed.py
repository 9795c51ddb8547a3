"""The smoke study up to its autoencoders, with and without a window, killed while shards come and go.

Run as a module it does so below a folder: `python -m tests.pipeline.windowed FOLDER`. Below `all` all shards stay;
below `none` and `window` training makes most of them, and dies at `MOMENTS`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.pipeline import kills
from tests.pipeline.moments import Moment

ASSETS = ("tokens", "activations", "evaluation_set", "dataset", "autoencoder")
PREFIX = "activations.statistics_prefix=3k"  # 4 shards of 16
# Two batch sizes: training reads everything twice, in two orders of time.
GRIDS = "autoencoders.grids=[{recipe: topk, n: 128, k: 4}, {recipe: topk, n: 128, k: 8, batch: 512}]"
N_SHARDS, N_PINNED, RESIDENT = 16, 4, 2
SHARD_BYTES = 768 * 128 * 2 + 20 + 4
RETAIN = {"all": "all", "none": "none", "window": f"{{window: {9 * SHARD_BYTES + 100}}}"}
MOST = {"none": 2 * RESIDENT, "window": 9}
MOMENTS = {
    "none": (
        Moment("autoencoder", "forward", 4),  # before a shard is made
        Moment("autoencoder", "shard", 5),  # its bytes lie under another name
        Moment("autoencoder", "step", 20),
    ),
    "window": (
        Moment("autoencoder", "commit", 4, "after"),  # committed, not admitted
        Moment("autoencoder", "commit", 5),  # a shard without a record
        Moment("autoencoder", "step", 15),
    ),
}


def settings_of(retain: str) -> tuple[str, ...]:
    """The study's overrides for one of `RETAIN`."""
    return (*kills.SETTINGS, PREFIX, GRIDS, f"activations.retain={RETAIN[retain]}")


def making(retain: str) -> Callable[[Path], int]:
    """What a child does: make what is not there, up to the autoencoders."""

    def run(outputs: Path) -> int:
        from assets.launching import backfill, prepare_instance
        from resources import StudyGraph
        from sae_pipeline.definitions import build_definitions

        (outputs.parent / "home").mkdir(exist_ok=True)
        graph = StudyGraph.read(kills.STUDY, settings_of(retain), outputs)
        defs, instance, failures = build_definitions(graph), prepare_instance(graph), list[str]()
        for asset in ASSETS:
            missing = [node for node in graph.workspace.lineage.of_asset(asset) if not graph.workspace.find(node.name)]
            failures += backfill(defs, graph, instance, missing) if missing else []
        print(*failures, sep="\n")
        return len(failures)

    return run


def shards_in_window(outputs: Path) -> tuple[int, int]:
    """Bytes of files in the window that are or may become shards, and the number of committed ones."""
    windows = list(outputs.glob("artefacts/activations/*/.window"))
    files = [path for window in windows for path in (window / "acts" / "c").rglob("*") if path.is_file()]
    records = [path for window in windows for path in (window / "commits" / "acts").glob("*.json")]
    return sum(path.stat().st_size for path in files), len(records)


def campaign(folder: Path) -> dict[str, Any]:
    """Everything; what was seen after each trial, by the name of its folder."""
    kills.preload()
    seen: dict[str, Any] = {"all": [asdict(kills.Trial(folder / "all", run=making("all")).wait())]}
    for retain in MOST:
        shutil.copytree(folder / "all", folder / retain)  # tokens and evaluation set need not be made again
        for made in (folder / retain / "outputs" / "artefacts").glob("*/code.2.*"):
            shutil.rmtree(made)
        trials, waiting = seen.setdefault(retain, []), list(MOMENTS[retain])
        while not trials or trials[-1]["fired"] is not None:
            outcome = kills.Trial(folder / retain, waiting, making(retain)).wait()
            trials.append(asdict(outcome) | {"window": shards_in_window(folder / retain / "outputs")})
            waiting = [moment for moment in waiting if moment != outcome.fired]
    return seen


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "record.json").write_text(json.dumps(campaign(place)))
