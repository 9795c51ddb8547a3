"""`make soak`: kill -9 at random moments of every stage and of a bare writer, SIGTERM and kill -9 of a bare training,
harm to all that was published, and how often 95 % intervals hold the truth.

Writes benchmarks/results/soak.json and ends with status 1 if anything failed. `python -m tests.soak [SEED]`.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.evaluation import coverage
from tests.pipeline import kills
from tests.pipeline.likeness import differences
from tests.pipeline.moments import STAGE_OF, Moment
from tests.store import harm
from tests.training import stops

RESULT = kills.CHECKOUT / "benchmarks" / "results" / "soak.json"
CHAINS = 4
DEATHS = dict.fromkeys(STAGE_OF, 2) | {"start": 1, "activations": 3, "dataset": 3, "autoencoder": 5}
"""How often a chain is to die in each asset; "start" is before the first."""
HEAVY = {"step", "checkpoint", "forward", "shard", "commit"}
BEGINNING = {"array", "draft", "mkdir"}
PUBLISHING = {"artefact", "champion", "copy", "end", "event", "pointer", "verdict"}
WRITER_DEATHS = 120
"""How often a process that only writes, commits, publishes and merges is to die."""
TRAINERS_TERMINATED, TRAINERS_KILLED = 40, 20
"""How often a process that only trains is to be ended by SIGTERM, which it may answer, and by SIGKILL, at the least."""
FLIPS, OTHER_HARM = 1000, 100
"""Bits flipped in published files of every kind; shards that are cut short, exchanged, missing: so many of each."""
# Flips under the pipeline: what is made again, and the input in which a bit changed before.
MADE_FROM = (
    ("activations", "tokens"), ("evaluation_set", "tokens"), ("dataset", "activations"), ("autoencoder", "activations"),
    ("autoencoder", "dataset"), ("codes", "autoencoder"), ("codes", "evaluation_set"), ("eval_density", "codes"),
    ("eval_downstream", "codes"), ("eval_downstream", "evaluation_set"), ("eval_reconstruction", "codes"),
    ("champion", "autoencoder"), ("evaluation_table", "eval_reconstruction"), ("scaling_laws", "evaluation_table"),
    ("report", "autoencoder"), ("report", "scaling_laws"),
)  # fmt: skip

Counts = dict[str, dict[str, int]]
Record = dict[str, Any]


def main(seed: int) -> int:
    """Everything; the exit status."""
    started_s = time.monotonic()
    kills.preload()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    whole = kills.Trial(folder / "whole").wait()
    if not whole.completed:
        raise SystemExit(whole.log)
    jobs: list[Callable[[], Record]] = [
        lambda number=number: chain(folder, number, seed * 1000 + number, whole.counts) for number in range(CHAINS)
    ]
    jobs += [lambda: harm_read(folder, seed), lambda: harm.kill_writers(folder, seed, WRITER_DEATHS)]
    jobs += [lambda: stops.strike_trainers(folder / "trainers", seed, TRAINERS_TERMINATED, TRAINERS_KILLED)]
    jobs += [lambda pair=pair: flip_run(folder, seed, *pair) for pair in MADE_FROM]
    *records, covered = side_by_side([*jobs, lambda: coverage.trials(seed)], folder)
    chains, (read, writers, trainers), runs = records[:CHAINS], records[CHAINS : CHAINS + 3], records[CHAINS + 3 :]
    result = summarise(seed, chains, read, writers, trainers, runs)
    result |= {"coverage": covered, "failures": result["failures"] + len(covered["failures"])}
    result["failed"] += covered["failures"]
    result["seconds"] = round(time.monotonic() - started_s)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(folder)
    shown = ("deaths", "writer_deaths", "trainer_deaths", "flips_read", "shards_harmed", "flips_run", "failures")
    print(json.dumps({name: result[name] for name in shown}, indent=2))
    return 1 if result["failures"] else 0


def side_by_side(jobs: Sequence[Callable[[], Record]], folder: Path) -> Iterator[Record]:
    """What each job returns, in order; jobs run in forked processes, one per core."""
    waiting, running = list(enumerate(jobs)), set[int]()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.add(_fork(*waiting.pop(0), folder))
        running.remove(os.wait()[0])
    for number in range(len(jobs)):
        path = folder / f"job-{number}.json"
        yield json.loads(path.read_text()) if path.exists() else {"failures": [f"job {number} died"]}


def _fork(number: int, job: Callable[[], Record], folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            (folder / f"job-{number}.json").write_text(json.dumps(job()))
            status = 0
        finally:
            os._exit(status)
    return pid


def chain(folder: Path, number: int, seed: int, census: Counts) -> Record:
    """One study killed at random moments of each asset until it completes; then it must equal the whole one."""
    drawn, place, started_s = random.Random(seed), folder / f"chain-{number}", time.monotonic()
    deaths, so_far = list[Record](), Counter[str]()
    while True:
        armed = [draw(drawn, asset, census[asset], so_far[asset]) for asset in sorted(census)]
        outcome = kills.Trial(place, [moment for moments in armed for moment in moments]).wait()
        if outcome.fired is None:
            break
        so_far[outcome.fired.asset] += 1
        deaths.append(asdict(outcome.fired))
    failures = [] if outcome.completed else [f"seed {seed}: {outcome.log}"]
    failures += [f"seed {seed}: {line}" for line in differences(folder / "whole" / "outputs", place / "outputs")]
    failures += [f"seed {seed}: {line}" for line in still_running(place / "home")]
    shutil.rmtree(place)
    return {
        "seed": seed,
        "deaths": deaths,
        "seconds": round(time.monotonic() - started_s),
        "completed": outcome.completed,
        "failures": failures,
    }


def draw(drawn: random.Random, asset: str, counts: dict[str, int], deaths: int) -> list[Moment]:
    """A moment of an asset: of its work, or of publishing too if it is the asset's last death.

    After some deaths there is less to do, so the moment is among the earlier operations; if it does not come, the
    asset's end does. None once the asset has had its deaths.
    """
    left = DEATHS[asset] - deaths
    if left <= 0:
        return []
    unlikely = (PUBLISHING if left > 1 else set()) | (BEGINNING if deaths else set())
    kinds = sorted(set(counts) - unlikely)
    (kind,) = drawn.choices(kinds, [4 if kind in HEAVY else 1 for kind in kinds])
    phases = ("before", "half", "after") if kind in ("write", "plain copy") else ("before", "after")
    moment = Moment(asset, kind, drawn.randint(1, max(1, counts[kind] // (deaths + 1))), drawn.choice(phases))
    return [moment, Moment(asset, "end")]


def still_running(home: Path) -> Iterator[str]:
    """Runs that Dagster takes for unfinished, and places in the pool that are taken, after all is done."""
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield from (f"run {run.run_id} is {run.status.value}" for run in instance.get_runs() if not run.is_finished)
        taken = instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
        yield from (f"the pool gpu is held by {slot}" for slot in taken)


def harm_read(folder: Path, seed: int) -> Record:
    """Harm a published file, read its artefact, undo it: reading must fail and name a file that was harmed."""
    drawn, started_s = random.Random(seed), time.monotonic()
    place = Path(shutil.copytree(folder / "whole" / "outputs", folder / "harmed"))
    artefacts = sorted(path.parent for path in place.rglob("artefact.json"))
    by_kind: dict[str, list[tuple[Path, Path]]] = {}
    for artefact_dir in artefacts:
        for path in published_files(artefact_dir):
            by_kind.setdefault(kind_of_file(path, artefact_dir), []).append((path, artefact_dir))
    kinds = sorted(by_kind)
    trials = [("flipped", kinds[number % len(kinds)]) for number in range(FLIPS)]
    trials += [(name, "shard") for name in harm.HARMS if name != "flipped" for _ in range(OTHER_HARM)]
    tried, failures = {name: Counter[str]() for name in harm.HARMS}, []
    for name, kind in trials:
        path, artefact_dir = drawn.choice(by_kind[kind])
        other = unlike(path, [shard for shard, _ in by_kind["shard"]], drawn)
        with harm.harmed(name, path, other, drawn) as harmed:
            named = harm.error_path(artefact_dir)
        tried[name][kind] += 1
        if named not in harmed:
            failures.append(f"{path.relative_to(place)}: {name}, reading named {named}")
    failures += [f"{path.relative_to(place)}: damaged by nothing" for path in artefacts if harm.error_path(path)]
    shutil.rmtree(place)
    harmed_by = {name: dict(counts) for name, counts in tried.items()}
    return {"seed": seed, "tried": harmed_by, "seconds": round(time.monotonic() - started_s), "failures": failures}


def unlike(path: Path, shards: Sequence[Path], drawn: random.Random) -> Path:
    """A shard with other bytes: of the same array if there is one."""
    near = [shard for shard in shards if shard.parents[2] == path.parents[2] or shard.parents[1] == path.parents[1]]
    data = path.read_bytes()
    for candidates in (near, shards):
        for other in drawn.sample(candidates, len(candidates)):
            if other.read_bytes() != data:
                return other
    raise ValueError(f"every shard has the bytes of {path}")


def published_files(artefact_dir: Path) -> list[Path]:
    """All files of an artefact; hidden ones (locks, temporaries) are no part of it."""
    return sorted(p for p in artefact_dir.rglob("*") if p.is_file() and not p.name.startswith("."))


def kind_of_file(path: Path, artefact_dir: Path) -> str:
    """Shard, commit record, one of the metadata files by name, or the suffix."""
    parts = path.relative_to(artefact_dir).parts
    if parts[0] == "commits" or "c" in parts:
        return "commit record" if parts[0] == "commits" else "shard"
    return path.name if path.name in ("artefact.json", "draft.json", "zarr.json") else path.suffix


def flip(path: Path, drawn: random.Random) -> tuple[int, int]:
    """Change one random bit of a file; returns where."""
    position, bit = drawn.randrange(path.stat().st_size), drawn.randrange(8)
    flip_bit(path, position, bit)
    return position, bit


def flip_bit(path: Path, position: int, bit: int) -> None:
    """Change one bit in place."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def flip_run(folder: Path, seed: int, made: str, source: str) -> Record:
    """Forget an asset, flip a bit of one of its inputs, run: it fails naming the file, or it never read the file."""
    drawn, place = random.Random(f"{seed} {made} {source}"), folder / f"flip-{made}-{source}"
    started_s = time.monotonic()
    shutil.copytree(folder / "whole", place)
    outputs = place / "outputs"
    pointers = json.loads((outputs / "smoke" / "current.json").read_text())
    for node, where in pointers.items():
        if node.split("/")[0] == made:
            shutil.rmtree(outputs / where)
    inputs = [outputs / where for node, where in sorted(pointers.items()) if node.split("/")[0] == source]
    path = drawn.choice([path for folder_ in inputs for path in published_files(folder_)])
    position, bit = flip(path, drawn)
    outcome = kills.Trial(place).wait()
    name = path.relative_to(outputs).as_posix()
    refused = outcome.status == 1 and str(path) in outcome.log
    flip_bit(path, position, bit)
    other = differences(folder / "whole" / "outputs", outputs) if outcome.completed else []
    ended = "refused" if refused else "not read" if outcome.completed and not other else "failed"
    shutil.rmtree(place)
    return {
        "made": made,
        "from": source,
        "file": name,
        "byte": position,
        "bit": bit,
        "ended": ended,
        "seconds": round(time.monotonic() - started_s),
        "failures": [f"{made} from {source}: {name}: {other or outcome.log}"] if ended == "failed" else [],
    }


def summarise(
    seed: int, chains: list[Record], read: Record, writers: Record, trainers: Record, runs: list[Record]
) -> Record:
    """The result: counts first, then every trial."""
    import torch

    deaths = [death for record in chains for death in record.get("deaths", [])]
    failures = [line for record in (*chains, read, writers, trainers, *runs) for line in record["failures"]]
    flips, *others = (read.get("tried", {}).get(name, {}) for name in harm.HARMS)
    return {
        "seed": seed,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "deaths": {
            "total": len(deaths),
            "by_stage": dict(Counter(STAGE_OF.get(death["asset"], "before any") for death in deaths)),
            "by_kind": dict(Counter(death["kind"] for death in deaths)),
            "by_phase": dict(Counter(death["phase"] for death in deaths)),
        },
        "writer_deaths": {"total": writers.get("deaths", 0), "by_call": writers.get("by_call", {})},
        "trainer_deaths": trainers.get("deaths", {}),
        "flips_read": {"total": sum(flips.values()), "by_kind": flips},
        "shards_harmed": {name: sum(counts.values()) for name, counts in zip(harm.HARMS[1:], others, strict=True)},
        "flips_run": {"total": len(runs), **Counter(record.get("ended", "failed") for record in runs)},
        "failures": len(failures),
        "failed": failures,
        "chains": chains,
        "runs_on_flipped_inputs": runs,
    }


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
