"""Speed of training beside other libraries, and time to their quality: ratios within one run.

Run `python benchmarks/training.py [--quick] [--speed | --quality] [--peers DIR]`. Each package is installed at the
version that conformance.py pins into an environment of its own, which sees the PyTorch that is installed here; it is
made if missing and kept (by default below the system's temporary folder). One that cannot be installed is skipped and
said so. Every trainer (see training/) is a process of its own and reads the same rows from one file; all defaults are
its package's own.

Speed: in every round each trainer makes as many steps as take it about `--seconds`, in an order drawn anew; ratios to
the best peer (the one of the largest median) are taken within the round. *Products*: the encoder's dense product
alone, all that a trainer with an exact TopK cannot do without. Memory is the peak above what the process held before
its trainer was built, when it had imported everything and read the rows. Ours keeps no running average of the weights,
as no peer does.

Quality: held-out NMSE along the way, in turns again; the target is the lowest that any peer's recipe has after
`--tokens` at its defaults, and the time to it is that of training alone, at the first look that finds it. A recipe
whose rate falls to 0 is told its whole budget. Each of `--seeds` is a measurement by itself: other weights, and rows
of other planted directions, none of them those on which our fast recipe was chosen. Weights and rows share no seed and
no generator; the NMSE before the first step shows that none knows them.

Prints tables in Markdown and writes results/training.json; with `--quick` (the first form, one thread, few steps) it
only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance import CHECKOUT, PEERS, install
from store import Worker

FOLDER = CHECKOUT / "benchmarks" / "training"
sys.path.append(str(FOLDER))  # a folder and a script of one name: it cannot be a package

from tables import render_quality, render_speed  # noqa: E402
from ways import AUXK_FORM, AUXK_WAYS, FORMS, OUR_WAYS, PEER_WAYS, PRODUCTS, QUALITY_FORM, Form, Way, quality_ways  # noqa: E402

RESULT = CHECKOUT / "benchmarks" / "results" / "training.json"
THREADS = (1, 2)
STEPS = 10_000  # that a speed trial is told it will make
BATCHES = 8  # in its file
SEED = 1
ROWS_SEED = 7_000  # recipes were chosen on the rows of another seed (training/rows.py)
HELD_OUT = 4096  # rows


def environments(folder: Path) -> dict[str | None, Path]:
    """The interpreter of each package that is or could be installed; that of None is this one."""
    seen = zlib.crc32(sysconfig.get_path("purelib").encode())  # whose PyTorch an environment sees
    found: dict[str | None, Path] = {None: Path(sys.executable)}
    for name in {way.package: None for way in PEER_WAYS.values()}:
        home = folder / f"{name}-{PEERS[name].version}-torch-{version('torch')}-{seen:08x}"
        ready = home / "interpreter.txt"
        try:
            if not ready.exists():
                ready.write_text(str(install(name, PEERS[name], home)), encoding="utf-8")
        except subprocess.CalledProcessError as error:
            print(f"skipped {name}: {Path(error.cmd[0]).name} ended with status {error.returncode}")
        else:
            found[name] = Path(ready.read_text(encoding="utf-8"))
    return found


def write_rows(path: Path, *numbers: int) -> Path:
    """So many rows of width d, and the seed of their planted directions if it is not the usual one."""
    subprocess.run([sys.executable, str(FOLDER / "rows.py"), str(path), *map(str, numbers)], check=True)
    return path


def launch(pythons: Mapping[str | None, Path], ways: Mapping[str, Way], task: dict[str, Any]) -> dict[str, Worker]:
    """A process for each way, built and waiting; one that cannot be is skipped and said so."""

    def start(way: Way) -> Worker:
        described = json.dumps({**task, **way.task, "options": dict(way.options)})
        command = [str(pythons[way.package]), "-W", "ignore", str(FOLDER / "worker.py"), way.adapter, described]
        own = {"PYTHONPATH": str(CHECKOUT)} if way.package is None else {}
        return Worker(command, {"OMP_NUM_THREADS": str(task["threads"]), **own})

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        starting = {name: pool.submit(start, way) for name, way in ways.items() if way.package in pythons}
    workers = dict[str, Worker]()
    for name, future in starting.items():
        try:
            workers[name] = future.result()
        except RuntimeError as error:
            print(f"skipped {name}: its process ended {str(error).rpartition(' ended ')[2]}")
    return workers


def rounds(workers: Mapping[str, Worker], n_rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """The answers of every way, by round; a step or two before the first warm it up, and tell how many make a turn."""
    steps = dict[str, int]()
    for name, worker in workers.items():
        step_s = worker.ask("go 1")["wall_s"]
        if step_s < seconds:  # the first step of all is slow
            step_s = worker.ask("go 1")["wall_s"]
        steps[name] = max(1, round(seconds / step_s))
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(n_rounds):
        for name in random.sample(sorted(workers), len(workers)):
            found[name].append({**workers[name].ask(f"go {steps[name]}"), "steps": steps[name]})
    return found


def measure_speed(form: Form, threads: int, given: argparse.Namespace, pythons: Mapping[str | None, Path]) -> Any:
    """All ways in turns on one form."""
    rows = BATCHES * form.batch
    ways = PEER_WAYS | OUR_WAYS | PRODUCTS | (AUXK_WAYS if form == AUXK_FORM else {})
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder) / "rows.npy", rows, form.d)
        shared = {"data": str(data), "held_out": 0, "rows": rows, "steps": STEPS, "seed": SEED, "threads": threads}
        load_before = os.getloadavg()[0]
        workers = launch(pythons, ways, {**vars(form), **shared})
        try:
            found = rounds(workers, given.rounds, given.seconds)
        finally:
            for worker in workers.values():
                worker.close()
    about = {**vars(form), "threads": threads, "load_before": load_before}
    return about | {"ways": {name: worker.hello | record(found[name], form.batch) for name, worker in workers.items()}}


def record(answers: list[dict[str, float]], batch: int) -> dict[str, Any]:
    """Rates of one way by round, and the most memory it took."""
    return {
        "tokens_per_s": [batch * each["steps"] / each["wall_s"] for each in answers],
        "tokens_per_cpu_s": [batch * each["steps"] / each["cpu_s"] for each in answers],
        "over_base_mb": max(each["over_base_mb"] for each in answers),
        "steps_per_round": answers[0]["steps"],
    }


def measure_quality(seed: int, given: argparse.Namespace, pythons: Mapping[str | None, Path], data: Path) -> Any:
    """Every recipe's held-out NMSE along the way, all taking turns; the target, and when each reached it."""
    ways = PEER_WAYS | quality_ways(given.tokens)
    rows = given.tokens // QUALITY_FORM.batch * QUALITY_FORM.batch
    shared = {"data": str(data), "held_out": HELD_OUT, "rows": rows, "steps": rows // QUALITY_FORM.batch}
    task = {**vars(QUALITY_FORM), **shared, "seed": seed, "threads": given.quality_threads}
    workers = launch(pythons, ways, task)
    try:
        trails = {name: [point(worker)] for name, worker in workers.items()}
        for turn in range(1, given.turns + 1):
            for name in random.sample(sorted(workers), len(workers)):
                steps, batch = ({**task, **ways[name].task}[what] for what in ("steps", "batch"))
                more = steps * turn // given.turns - steps * (turn - 1) // given.turns
                trails[name].append(point(workers[name], more, batch, trails[name][-1]))
    finally:
        for worker in workers.values():
            worker.close()
    if not (peers := [name for name in PEER_WAYS if name in trails]):
        sys.exit("no peer could be installed: there is no quality to reach")
    best = min(peers, key=lambda name: trails[name][-1]["nmse"])
    target = trails[best][-1]["nmse"]
    reached = {name: next((at for at in trail if at["nmse"] <= target), None) for name, trail in trails.items()}
    about = {"seed": seed, "threads": given.quality_threads, "best_peer": best, "target_nmse": target}
    return {**about, "reached": reached, "trails": trails}


def point(worker: Worker, steps: int = 0, batch: int = 0, last: Mapping[str, float] | None = None) -> dict[str, float]:
    """Where a recipe stands after so many more steps: what it cost until now, and its held-out NMSE."""
    spent = {name: (last or {}).get(name, 0.0) for name in ("tokens", "wall_s", "cpu_s")}
    if steps:
        answer = {**worker.ask(f"go {steps}"), "tokens": steps * batch}
        spent = {name: value + answer[name] for name, value in spent.items()}
    return spent | worker.ask("evaluate")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
        "packages": {way.package: PEERS[way.package].version for way in PEER_WAYS.values() if way.package},
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--speed", action="store_true", help="only the speed")
    only.add_argument("--quality", action="store_true", help="only the time to quality")
    parser.add_argument("--quick", action="store_true", help="the first form, one thread, few steps; writes no result")
    parser.add_argument("--rounds", type=int, default=4, help="turns of every trainer (default 4)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn; at least a step (default 1.5)")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS[: os.cpu_count()])
    parser.add_argument("--quality-threads", type=int, default=1, help="of the time to quality (default 1)")
    parser.add_argument("--turns", type=int, default=14, help="in which it looks at the quality (default 14)")
    parser.add_argument("--tokens", type=int, default=200_000, help="that make the target (default 200,000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the times to quality")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "sae-pipeline-peers")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.threads, given.tokens, given.turns = 2, 0.5, [1], 20_000, 4
    return given


def speed(given: argparse.Namespace, pythons: Mapping[str | None, Path]) -> list[Any]:
    """Every form at every number of threads."""
    results = []
    for form in FORMS[:1] if given.quick else FORMS:
        for threads in given.threads:
            results.append(measure_speed(form, threads, given, pythons))
            print(render_speed(results[-1]), end="\n\n", flush=True)
    return results


def quality(given: argparse.Namespace, pythons: Mapping[str | None, Path]) -> list[Any]:
    """The time to quality from every seed of the weights, each on rows of planted directions of its own."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            data = write_rows(Path(folder) / "rows.npy", HELD_OUT + given.tokens, QUALITY_FORM.d, ROWS_SEED + seed)
            results.append(measure_quality(seed, given, pythons, data))
            print(render_quality(results[-1:]), flush=True)
    return results


def main() -> None:
    given = parsed()
    random.seed(SEED)
    given.peers.mkdir(parents=True, exist_ok=True)
    pythons = environments(given.peers)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result["machine"] = machine()
    if not given.quality:
        result["speed"] = speed(given, pythons)
    if not given.speed:
        result["quality"] = quality(given, pythons)
    if not given.quick:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
