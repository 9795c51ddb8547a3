"""Writing, publishing, verifying, taking over and reading take as much memory for ten times the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, re, sys
from pathlib import Path
import numpy as np
from sae_pipeline.store import Artefact, Draft
from sae_pipeline.store.array_format import create_array

D, SHARD_ROWS = 64, 4096  # half a MiB a shard
# Memory is what counts here.
os.fsync = lambda fd: None
root, codec = Path(sys.argv[1]), sys.argv[2]
rows_xd = np.random.default_rng(0).standard_normal((SHARD_ROWS, D)).astype(np.float16)


def peak():
    # Of this program alone; ru_maxrss would begin with the peak of the process that started it.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))


def opened(path, n_shards):
    draft = Draft.open(path, stage="s", key="k", identity="1" * 64, lineage={})
    create_array(path, "x", shape=(n_shards * SHARD_ROWS, D), dtype="float16", shard_rows=SHARD_ROWS, codec=codec)
    return draft, draft.array("x")


def work(path, n_shards):
    draft, array = opened(path / "a", n_shards)
    for i in range(n_shards):
        array.write_shard(i, rows_xd)
    source = draft.publish({}).array("x")
    draft, array = opened(path / "b", n_shards)
    for i in range(n_shards):
        array.adopt(i, source)
    artefact = draft.publish({})
    assert list(artefact.verify()) == []
    out = np.empty_like(rows_xd)
    for i in range(n_shards):
        artefact.array("x").read(i * SHARD_ROWS, (i + 1) * SHARD_ROWS, out=out)
        artefact.array("x").read_float32(i * SHARD_ROWS + 7, i * SHARD_ROWS + 9)
    assert (out == rows_xd).all()


work(root / "small", 10)
small = peak()
work(root / "large", 100)
large = peak()
held = np.ones(90 * rows_xd.nbytes, np.uint8)
print(json.dumps({"more_data": len(held), "more_memory": large - small, "seen_if_held": peak() - large}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_is_flat_over_ten_times_the_data(tmp_path: Path, codec: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), codec]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["more_memory"] < 0.1 * found["more_data"], found
    assert found["seen_if_held"] > 0.5 * found["more_data"], found
