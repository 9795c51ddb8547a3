"""One trainer in a process of its own, timed: `worker.py ADAPTER TASK`, TASK being a task.Task in JSON.

Driven by benchmarks/training.py. A line on standard input is `go STEPS` or `evaluate`; the answer is a line of JSON. It
runs in the environment of its package, and imports nothing else of this project, but for our own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from task import Task, Trainer

BLOCK = 1024  # rows reconstructed at a time


def loaded(task: Task, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows held out, both in memory, of the norm that the package wants."""
    rows_xd = np.load(task.data, mmap_mode="r")[: task.held_out + task.rows] * np.float32(scale)
    held_out_xd, trained_xd = np.split(rows_xd, [task.held_out])
    return torch.from_numpy(trained_xd), torch.from_numpy(held_out_xd)


def megabytes(what: str) -> float:
    """Resident memory of this process: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def forget_peak() -> None:
    """Let the peak begin anew, where the kernel allows it."""
    Path("/proc/self/clear_refs").write_text("5")


class Session:
    """A trainer, the rows it sees, and where it stands."""

    def __init__(self, adapter: Any, task: Task) -> None:
        self.task, self.done = task, 0
        self.rows_xd, self.held_out_xd = loaded(task, adapter.scale(task.d))
        forget_peak()
        self.base_mb = megabytes("VmRSS")
        started = time.perf_counter()
        self.trainer: Trainer = adapter.Trainer(task, self.rows_xd)
        self.build_s = time.perf_counter() - started

    def go(self, steps: int) -> dict[str, float]:
        """So many steps: seconds on the clock and of processor time, and the peak of memory until now."""
        batch, per_pass = self.task.batch, self.task.rows // self.task.batch
        started, cpu_started = time.perf_counter(), time.process_time()
        for step in range(self.done, self.done + steps):
            start = step % per_pass * batch
            self.trainer.step(self.rows_xd[start : start + batch])
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        self.done += steps
        return {"wall_s": wall_s, "cpu_s": cpu_s, "over_base_mb": megabytes("VmHWM") - self.base_mb}

    def evaluate(self) -> dict[str, float]:
        """Σ‖x − x̂‖² / Σ‖x − x̄‖² over the rows held out."""
        with torch.no_grad():
            blocks = self.held_out_xd.split(BLOCK)
            error = sum(float((x - self.trainer.reconstruct(x)).double().square().sum()) for x in blocks)
        x = self.held_out_xd.double()
        return {"nmse": error / float((x - x.mean(0)).square().sum())}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")  # what packages print is kept apart from the answers
    os.dup2(2, 1)
    name, described = sys.argv[1:]
    task = Task(**json.loads(described))
    adapter = importlib.import_module(name)
    torch.set_num_threads(task.threads)
    session = Session(adapter, task)
    capability = torch.backends.cpu.get_cpu_capability()
    answer = {"torch": torch.__version__, "capability": capability, "build_s": session.build_s}
    with out:
        while True:
            print(json.dumps(answer), file=out, flush=True)
            words = sys.stdin.readline().split()
            if not words:
                return
            answer = session.go(int(words[1])) if words[0] == "go" else session.evaluate()


if __name__ == "__main__":
    main()
