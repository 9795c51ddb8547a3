"""Memory of training as planned and as it is: what a member adds to a process that has trained a small one before.

The small member brings in everything that is not the member's own, libraries above all. Then the peak of the resident
memory begins anew, and the trainer makes a few steps with the large one and writes what it became. Planned is what
`sae-pipeline plan` adds for a member: `state_bytes` and `working_bytes` of training/cost.py, whose factors were fitted
to runs of this script. The goal is a plan within 10 % of the peak. Every run is a process of its own, on one thread.
Run `python benchmarks/training_memory.py [--quick] [--folder DIR]`; writes results/training_memory.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from activation_feed import Case, publish

from sae_pipeline.dataset import Dataset
from sae_pipeline.store import Draft, reuse_freed_memory
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training import Member, train
from sae_pipeline.training.cost import state_bytes, working_bytes

GOAL, BATCH, STEPS, SMALL = 0.10, 1024, 12, 64
SHARD_ROWS = 512  # so that the pool of shards is small: a plan counts it apart
TOPK = {"recipe": "topk", "k": 32, "auxk_k": 128, "auxk_alpha": 1 / 32}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "topk, n = 8192": (256, {**TOPK, "n": 8192}),
    "topk, n = 16384": (256, {**TOPK, "n": 16384}),
    "topk, n = 16384, average": (256, {**TOPK, "n": 16384, "ema": 0.99}),
    "topk, n = 16384, a checkpoint every step": (256, {**TOPK, "n": 16384, "often": True}),
    "topk, n = 32768": (256, {**TOPK, "n": 32768}),
    "topk, d = 768, n = 8192": (768, {**TOPK, "n": 8192}),
    "topk, d = 768, n = 16384, average": (768, {**TOPK, "n": 16384, "ema": 0.99}),
    "relu, n = 8192": (256, {"recipe": "relu", "n": 8192, "l1": 0.1}),
    "relu, n = 16384": (256, {"recipe": "relu", "n": 16384, "l1": 0.1}),
    "gated, n = 8192": (256, {"recipe": "gated", "n": 8192, "l1": 0.1}),
    "jumprelu, n = 8192": (256, {"recipe": "jumprelu", "n": 8192, "l1": 0.1}),
    "tanh, n = 8192": (256, {"recipe": "tanh", "n": 8192, "l1": 0.1}),
    "prolu-ste, n = 8192": (256, {"recipe": "prolu-ste", "n": 8192, "l1": 0.1}),
    "batch-topk, n = 8192": (256, {**TOPK, "recipe": "batch-topk", "n": 8192}),
}


def spec_of(fields: dict[str, Any], n: int) -> AutoencoderSpec:
    """The member of a case with so many latents, for a few steps."""
    care = {"dead_after_tokens": 10**6, "warmup_steps": 2, "lr": 1e-4, "ema": None}
    given = {name: value for name, value in fields.items() if name != "often"} | {"n": n}
    return AutoencoderSpec(key=f"n{n}", batch=BATCH, tokens=STEPS * BATCH, **{**care, **given})


def added_bytes(name: str, folder: Path) -> int:
    """The peak of this process in a case, over what it holds after the small member."""
    d, fields = CASES[name]
    large, small = spec_of(fields, fields["n"]), spec_of(fields, SMALL)
    dataset = publish(folder, Case(name, d, SHARD_ROWS, (large,), STEPS))
    every_s = 0.0 if "often" in fields else 1e9
    made(folder, small, dataset, every_s)
    ctypes.CDLL(None).malloc_trim(0)  # what others have freed must not count as there
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    made(folder, large, dataset, every_s)
    return resident_bytes("VmHWM") - before


def made(folder: Path, spec: AutoencoderSpec, dataset: Dataset, every_s: float) -> None:
    """Train one member to its end."""
    with Draft.open(folder / spec.key, stage="autoencoder", key=spec.key, identity="c" * 64, lineage={}) as draft:
        (outcome,) = train({spec.key: Member(spec, draft)}, dataset, checkpoint_every_s=every_s).values()
    if outcome.status != "finished":
        raise SystemExit(f"{spec.key}: {outcome.error}")


def resident_bytes(what: str) -> int:
    """Of this process: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def measure(name: str, folder: Path | None) -> dict[str, Any]:
    """One case, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-W", "ignore", __file__, "--case", name, "--folder", place]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    d, fields = CASES[name]
    spec = spec_of(fields, fields["n"])
    planned = state_bytes(spec, d) + working_bytes(spec, d)
    return {"case": name, "d": d, "planned_mb": planned / 1e6, "measured_mb": int(answer) / 1e6}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first case alone; writes nothing")
    parser.add_argument("--folder", type=Path, help="where to put the data; default the system's temporary folder")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        reuse_freed_memory(map_large=True)  # as the asset does
        torch.set_num_threads(1)
        print(added_bytes(options.case, options.folder))
        return
    found = []
    for name in list(CASES)[:1] if options.quick else CASES:
        found.append(measure(name, options.folder))
        off = found[-1]["planned_mb"] / found[-1]["measured_mb"] - 1
        found[-1] |= {"off": off, "within_goal": abs(off) <= GOAL}
        print("{case:42s} planned {planned_mb:6.0f} MB, measured {measured_mb:6.0f} MB, {off:+.1%}".format(**found[-1]))
    if not options.quick:
        record = {"machine": platform.machine(), "torch": torch.__version__, "goal": GOAL, "cases": found}
        path = Path(__file__).parent / "results" / "training_memory.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
