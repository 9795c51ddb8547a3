"""Processor, memory, torch and its devices, the browser of the tests."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_pipeline.doctor.check import Check
from sae_pipeline.store.disk import human_bytes

_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
_LITTLE_MEMORY = 2 << 30  # the demo peaks at some 1.5 GB with its libraries
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PROBE_S = 180

# In a process of its own: a torch that does not fit the machine can end the process that imports it.
_TORCH = """
import json, torch
def works(device, dtype):
    try:
        a = torch.ones(64, 64, device=device, dtype=dtype)
        return bool((a @ a == 64).all())
    except (RuntimeError, NotImplementedError, TypeError):
        return False
devices = {"cpu": torch.backends.cpu.get_cpu_capability()}
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    devices[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 1e9:.3g} GB, sm_{p.major}{p.minor}"
if torch.backends.mps.is_available():
    devices["mps"] = "Apple GPU"
dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
print(json.dumps({
    "version": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda,
    "devices": {d: [what, [n for n, t in dtypes.items() if works(d, t)]] for d, what in devices.items()},
}))
"""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Check]:
    """Cores this process may use and the vector units that decide how fast a step is."""
    cores = usable_cores()
    flags = _flags(cpuinfo)
    if flags is None:
        yield Check("processor", "ok", f"{cores} cores, {platform.machine()}; its features are not known here")
        return
    features = " ".join(name for name in _FEATURES if name in flags) or "no vector units known here"
    slow = platform.machine() in ("x86_64", "AMD64") and "avx2" not in flags
    advice = "training works, at a fraction of the usual rate" if slow else ""
    yield Check("processor", "warn" if slow else "ok", f"{cores} cores, {platform.machine()}: {features}", advice)


def usable_cores() -> int:
    """Cores this process may run on: of its affinity, and of its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return min(cores, max(1, round(int(quota) / int(period)))) if quota.isdigit() else cores


def memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> Iterator[Check]:
    """Memory that is free for this process."""
    lines = dict(line.split(":") for line in _read(meminfo).splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        yield Check("memory", "ok", "free memory is not known here")
        return
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if limit.isdigit() and used.isdigit():
        total, free = min(total, int(limit)), min(free, int(limit) - int(used))
    found = f"{human_bytes(free)} free of {human_bytes(total)}"
    if free < _LITTLE_MEMORY:
        yield Check("memory", "warn", found, "close something, or see `sae-pipeline plan` for what a study needs")
    else:
        yield Check("memory", "ok", found)


def torch_devices(command: Sequence[str] = (sys.executable, "-c", _TORCH)) -> Iterator[Check]:
    """The devices torch can compute on, each with the types of number it multiplies there, and its threads."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        yield Check("torch", "fail", f"did not load within {_PROBE_S} s", "see whether the disk or a GPU hangs")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        yield Check("torch", "fail", f"cannot be imported: {last}", "install a torch that fits this machine")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    yield from _devices(found)
    yield _threads(int(found["threads"]), usable_cores(), os.environ)


def _devices(found: dict[str, Any]) -> Iterator[Check]:
    for device, (what, dtypes) in found["devices"].items():
        missing = "float32" not in dtypes
        advice = "it cannot multiply float32 matrices; reinstall torch" if missing else ""
        text = f"{found['version']} on {device} ({what}): {', '.join(dtypes) or 'nothing works'}"
        yield Check("torch", "fail" if missing else "ok", text, advice)
    if shutil.which("nvidia-smi") and not any(device.startswith("cuda") for device in found["devices"]):
        built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
        yield Check(
            "torch",
            "warn",
            f"nvidia-smi is there, but torch ({built}) sees no GPU",
            "install a CUDA build of torch that fits the driver, or see CUDA_VISIBLE_DEVICES",
        )


def _threads(threads: int, cores: int, environment: Mapping[str, str]) -> Check:
    given = environment.get("OMP_NUM_THREADS")
    note = f", OMP_NUM_THREADS={given}" if given else ""
    found = f"{threads} for torch, {cores} cores usable{note}"
    if threads > cores:
        return Check("threads", "warn", found, f"export OMP_NUM_THREADS={cores}: more threads than cores wait for it")
    if threads < cores / 2 and given:
        return Check("threads", "warn", found, "unset OMP_NUM_THREADS to use all cores")
    return Check("threads", "ok", found)


def browser() -> Iterator[Check]:
    """The browser that the tests of the report and the UI open pages in."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found:
        yield Check("browser", "ok", f"{found}, for the tests")
    else:
        yield Check("browser", "warn", "no chromium; tests that need one are skipped", "apt install chromium")


def _flags(cpuinfo: Path) -> set[str] | None:
    for line in _read(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
