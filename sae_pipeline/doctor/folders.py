"""The folders the pipeline writes to: room, and whether the file system keeps the promises publishing rests on."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_pipeline.doctor.check import Check
from sae_pipeline.store import atomic
from sae_pipeline.store.disk import human_bytes
from sae_pipeline.store.garbage import PROBE
from sae_pipeline.store.locks import FileLock

_LITTLE_DISK, _NO_DISK = 5 * 10**9, 3 * 10**8  # the demo takes 1 GB
_TAKE_LOCK = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
"""
_HELD = 7


def disk(folder: Path) -> Iterator[Check]:
    """Free room where a folder lies, or will lie once it is made."""
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    found = f"{human_bytes(free)} free at {folder}"
    if free < _NO_DISK:
        yield Check("disk", "fail", found, "make room: `sae-pipeline gc` lists what nothing refers to")
    elif free < _LITTLE_DISK:
        yield Check("disk", "warn", found, "`sae-pipeline plan` says what a study takes, `sae-pipeline gc` what can go")
    else:
        yield Check("disk", "ok", found)


def publishing(folder: Path) -> Iterator[Check]:
    """Create-if-absent, atomic replace and deletion, durably, with the functions that publishing uses."""
    there = _existing(folder)
    advice = f"let this user write there, or give another place with --outputs; nothing can be made in {folder}"
    try:
        missing = _promises(there)
    except OSError as error:
        yield Check("publishing", "fail", f"{there}: {error.strerror or error}", advice)
        return
    if missing:
        yield Check(
            "publishing",
            "fail",
            f"{there}: {missing}",
            "use a local file system; artefacts here could be half-written or overwritten",
        )
    else:
        yield Check("publishing", "ok", f"{there}: create-if-absent, atomic replace, fsync")


def _promises(there: Path) -> str | None:
    """Try out what publishing needs in a folder of its own; says what does not hold."""
    probe = there / f"{PROBE}{secrets.token_hex(6)}"
    atomic.make_dir(probe)
    try:
        atomic.create(probe / "a", b"first")
        try:
            atomic.create(probe / "a", b"second")
        except FileExistsError:
            pass
        else:
            return "creating a file that exists does not fail"
        if (probe / "a").read_bytes() != b"first":
            return "a refused creation changed the file"
        atomic.replace(probe / "a", b"third")
        os.rename(probe / "a", probe / "b")
        if (probe / "b").read_bytes() != b"third" or sorted(path.name for path in probe.iterdir()) != ["b"]:
            return "a replaced and renamed file is not what was written"
        (probe / "b").unlink()
        return None
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def file_locks(folder: Path) -> Iterator[Check]:
    """Whether a lock held here keeps another process out, and no longer than it is held."""
    there = _existing(folder)
    probe = there / f"{PROBE}{secrets.token_hex(6)}"
    advice = "use a file system with flock: two runs could write one artefact at the same time"
    probe.mkdir()
    try:
        with FileLock(probe / ".lock"):
            held = _locked_out(probe / ".lock")
        if held and not _locked_out(probe / ".lock"):
            yield Check("locks", "ok", f"{there}: flock keeps a second process out")
        else:
            what = "a lock that was given back still holds" if held else "a second process gets a lock that is held"
            yield Check("locks", "fail", f"{there}: {what}", advice)
    except OSError as error:
        yield Check("locks", "fail", f"{there}: {error.strerror or error}", advice)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _locked_out(path: Path) -> bool:
    done = subprocess.run([sys.executable, "-S", "-c", _TAKE_LOCK, str(path)], capture_output=True, check=False)
    return done.returncode == _HELD


def dagster_home(home: Path, environment: Mapping[str, str]) -> Iterator[Check]:
    """Whether the Dagster home has its settings, readable, with telemetry off."""
    file = home / "dagster.yaml"
    if not file.is_file():
        yield Check("dagster home", "warn", f"{file} is not there yet", "`sae-pipeline run` and `make ui` make it")
        return
    advice = f"copy dagster.yaml of the project to {file}"
    try:
        settings: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        yield Check("dagster home", "fail", f"{file} is not YAML: {' '.join(str(error).split())}", advice)
        return
    if not isinstance(settings or {}, dict):
        yield Check("dagster home", "fail", f"{file} holds no settings", advice)
        return
    yield Check("dagster home", "ok", str(file))
    told = (settings or {}).get("telemetry") or {}
    if told.get("enabled") is False or environment.get("DAGSTER_DISABLE_TELEMETRY"):
        yield Check("telemetry", "ok", "off")
    else:
        yield Check("telemetry", "warn", "Dagster's is on", f"write `telemetry: {{enabled: false}}` in {file}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())
