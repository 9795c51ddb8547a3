"""How much of the disk's speed the store keeps, beside other libraries: ratios to raw file access of the same bytes.

Run `python benchmarks/store.py [--quick] [--folder DIR] [--peers DIR]`. Every way of keeping the rows (see
store/worker.py) is a process of its own; the peers' live in an environment that is made for them, at pinned versions,
in a temporary folder (or kept at `--peers`); one that cannot be installed is skipped and said so. In each repetition
every way writes, then reads cold, then reads warm, in an order drawn anew; the ratio is taken within the repetition.

Raw writing is write and fsync of a file a shard; raw reading is readinto into a buffer that is used again. *Cold*: the
files were synced and the kernel told to forget them (posix_fadvise DONTNEED), so they come from the device, or from
the host's cache where this machine is a guest. *Warm*: just read. Libraries without an fsync of their own get one a
shard, inside the time. Written and read back are what /proc/self/io counts of the process itself; what ours reads back
while it writes is its draft's two JSON documents, and no row. Prints tables in Markdown and writes results/store.json;
with `--quick` (50 MB, three repetitions) it only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "store.json"
SHARD_BYTES = 32 << 20
SHAPES, CORES = (128, 768), (1, 2)
# Packages of the peers' environment; all of them see one numpy.
PACKAGES = {
    "zarr-python": ("zarr==3.1.6",),
    "zarrs": ("zarrs==0.2.3", "zarr==3.1.6"),
    "tensorstore": ("tensorstore==0.1.86",),
    "safetensors": ("safetensors==0.8.0",),
    "datasets": ("datasets==5.2.0", "pyarrow==26.0.1"),
}
NUMPY = "numpy==2.4.6"
OF_ZARR = ("zarr-python", "zarrs", "tensorstore")
READS_OF = {"ours, unchecked": "ours", "raw, 256 KiB a call": "raw"}
"""Ways that only read, and whose files."""
GOALS = {
    "cold, verified": ("ours", "cold", 0.65),
    "warm, without checksums": ("ours, unchecked", "warm", 0.5),
    "warm, verified": ("ours", "warm", 0.35),
    "committed write": ("ours", "write", 0.7),
}

Seconds = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Form:
    """What is measured: rows of width d in shards, on so many cores."""

    d: int
    n_shards: int
    cores: int

    @property
    def shard_rows(self) -> int:
        """Rows of a shard of 32 MiB, a multiple of 4096 where d allows it."""
        return max(4096, SHARD_BYTES // (2 * self.d) // 4096 * 4096)

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows."""
        return self.n_shards * self.shard_rows * self.d * 2


class Worker:
    """A process that answers every line it is sent with a line of JSON, and says one unasked: `hello`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env={**os.environ, **environment}, **pipes)
        self.hello: Any = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = self._answer()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(line)


def started(python: Path, way: str, form: Form) -> Worker:
    """A way at work in its own process; told `write FOLDER` or `read FOLDER`."""
    numbers = map(str, (form.d, form.shard_rows, form.n_shards, form.cores))
    command = [str(python), "-W", "ignore", str(HERE / "store" / "worker.py"), way, *numbers]
    return Worker(command, {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(form.cores)})


def install(folder: Path) -> dict[str, Path]:
    """The interpreter of each peer that could be installed; the others are named with pip's last line."""
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=True)
    python, installed = folder / "bin" / "python", dict[str, Path]()
    for name, packages in PACKAGES.items():
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", NUMPY, *packages]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            print(f"skipped {name}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
        else:
            installed[name] = python
    return installed


def forget(folder: Path) -> None:
    """Make the kernel drop what it holds of the files below a folder; only synced pages can be."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def measure(root: Path, pythons: dict[str, Path], form: Form, repetitions: int) -> dict[str, Any]:
    """Seconds of every way; the first repetition only warms up."""
    workers = {way: started(python, way, form) for way, python in pythons.items()}
    seconds: Seconds = defaultdict(list)
    counts = dict[str, dict[str, Any]]()
    try:
        for repetition in range(repetitions + 1):
            kept = write_all(root, workers, repetition, seconds, counts)
            read_all(kept, workers, repetition, seconds)
            for folder in kept.values():
                shutil.rmtree(folder)
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "d": form.d,
        "cores": form.cores,
        "shards": form.n_shards,
        "shard_rows": form.shard_rows,
        "bytes": form.n_bytes,
        "versions": {way: worker.hello for way, worker in workers.items()},
        "ways": {way: record(way, seconds, counts.get(way), form) for way in workers},
    }


def write_all(
    root: Path, workers: dict[str, Worker], repetition: int, seconds: Seconds, counts: dict[str, dict[str, Any]]
) -> dict[str, Path]:
    """Let all ways write, in an order drawn anew; the folder of each."""
    kept = dict[str, Path]()
    for way in random.sample(sorted(set(workers) - set(READS_OF)), len(workers) - len(READS_OF)):
        folder = kept[way] = root / f"{way.replace(' ', '-')}-{repetition}"
        answer = workers[way].ask(f"write {folder}")
        counts[way] = answer
        if repetition:
            seconds[way, "write"].append(answer["seconds"])
            seconds[way, "write and publish"].append(answer["seconds"] + answer["finish"]["seconds"])
    return kept


def read_all(kept: dict[str, Path], workers: dict[str, Worker], repetition: int, seconds: Seconds) -> None:
    """Let all ways read cold, then at once again, in an order drawn anew."""
    for way in random.sample(sorted(workers), len(workers)):
        folder = kept[READS_OF.get(way, way)]
        forget(folder)
        for kind in ("cold", "warm"):
            answer = workers[way].ask(f"read {folder}")
            if repetition:
                seconds[way, kind].append(answer["seconds"])


def record(way: str, seconds: Seconds, counted: dict[str, Any] | None, form: Form) -> dict[str, Any]:
    """Speeds and ratios of a way, each as median, least and most; and the bytes of its last writing."""
    found: dict[str, Any] = {}
    for kind in ("write", "write and publish", "cold", "warm"):
        if own := seconds[way, kind]:
            raw = seconds["raw", kind]
            found[kind] = {
                "gb_s": spread([form.n_bytes / 1e9 / s for s in own]),
                "ratio": spread([r / s for r, s in zip(raw, own, strict=True)]),
            }
    if counted:
        finish = counted["finish"]
        found["bytes"] = {
            "written_per_byte": counted["written"] / form.n_bytes,
            "read_back": counted["read"],
            "publish_written": finish["written"],
            "publish_read": finish["read"],
        }
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def advantage(result: dict[str, Any], kind: str) -> tuple[str, float]:
    """The fastest library that reads the shards and checks them, and how much faster ours is."""
    ways = result["ways"]
    name = max((way for way in OF_ZARR if way in ways), key=lambda way: ways[way][kind]["gb_s"]["median"])
    return name, ways["ours"][kind]["gb_s"]["median"] / ways[name][kind]["gb_s"]["median"]


def render(result: dict[str, Any]) -> str:
    """The table of one form, and how the goals fared."""
    title = f"d = {result['d']}, {result['cores']} core(s), {result['bytes'] / 1e6:.0f} MB in {result['shards']} shards"
    kinds = ("write", "write and publish", "cold", "warm")
    lines = [f"### {title}", "", "| GB/s (ratio to raw) | " + " | ".join(kinds) + " | written | read back |"]
    lines.append("|---" * (len(kinds) + 3) + "|")
    for way, found in result["ways"].items():
        cells = [shown(found[kind]) if kind in found else "" for kind in kinds]
        counted = found.get("bytes")
        cells += [f"{counted['written_per_byte']:.4f}", f"{counted['read_back']} B"] if counted else ["", ""]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines.append("")
    for goal, (way, kind, least) in GOALS.items():
        ratio = result["ways"][way][kind]["ratio"]["median"]
        lines.append(f"- {goal}: {ratio:.2f} of raw, goal {least}: {'met' if ratio >= least else 'missed'}")
    if any(way in result["ways"] for way in OF_ZARR):
        for kind in ("cold", "warm"):
            name, times = advantage(result, kind)
            lines.append(f"- {kind} and verified: {times:.2f} times {name}, the fastest library")
    return "\n".join(lines)


def shown(found: dict[str, dict[str, float]]) -> str:
    speed, ratio = found["gb_s"], found["ratio"]
    return f"{speed['median']:.2f} ({ratio['median']:.2f}, {ratio['least']:.2f}–{ratio['most']:.2f})"


def render_codecs(found: dict[str, Any]) -> str:
    """The table of what codecs save and cost."""
    title = f"### Codecs on {found['rows']} rows of d = {found['d']} of the shipped model, one core"
    columns = ["type", "codec", "compression", "write GB/s", "read GB/s", "write GB/processor s", "read GB/processor s"]
    lines = [title, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for way in found["ways"]:
        speeds = [way[what][per] for per in ("gb_per_s", "gb_per_processor_s") for what in ("write", "read")]
        cells = [way["dtype"], way["codec"], f"{way['compression']:.3f}", *(f"{speed:.2f}" for speed in speeds)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure_codecs(rows: int, repetitions: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(HERE / "store" / "codecs.py"), str(rows), str(repetitions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="of rows in every form (default 512)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--codec-rows", type=int, default=262_144)
    parser.add_argument("--quick", action="store_true", help="50 MB, three repetitions, one core; writes no result")
    parser.add_argument("--folder", type=Path, help="where to write and read, on the disk to be measured")
    parser.add_argument("--peers", type=Path, help="environment of the other libraries, made if missing and kept")
    parser.add_argument("--seed", type=int, default=0, help="of the order within a repetition")
    given = parser.parse_args()
    if given.quick:
        given.megabytes, given.repetitions, given.codec_rows = 50, 3, 16_384
    return given


def main() -> None:
    given = parsed()
    random.seed(given.seed)
    own = Path(sys.executable)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, tempfile.TemporaryDirectory() as environment:
        peers = install(given.peers or Path(environment))
        pythons = dict.fromkeys(("raw", "raw, 256 KiB a call", "ours", "ours, unchecked"), own) | peers
        results = []
        for d in SHAPES:
            for cores in CORES[:1] if given.quick else CORES[: os.cpu_count()]:
                n_shards = max(2, -(-given.megabytes * 10**6 // Form(d, 1, cores).n_bytes))
                results.append(measure(Path(folder), pythons, Form(d, n_shards, cores), given.repetitions))
                print(render(results[-1]), flush=True)
                print(flush=True)
    codecs = measure_codecs(given.codec_rows, given.repetitions)
    print(render_codecs(codecs))
    about = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    if not given.quick:
        result = {**about, "repetitions": given.repetitions, "forms": results, "codecs": codecs}
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
