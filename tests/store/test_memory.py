"""What becomes of freed memory under glibc, each way in a process of its own."""

import subprocess
import sys

import pytest

WORK = """
import sys
from pathlib import Path
import numpy as np
from sae_pipeline.store import reuse_freed_memory
assert reuse_freed_memory(map_large=sys.argv[1] == "map")
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10
before = resident()
for _ in range(3):
    block = np.ones(48 << 20, np.uint8)
    del block
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
@pytest.mark.parametrize(("way", "kept_mb"), [("reuse", range(40, 60)), ("map", range(8))])
def test_large_blocks_stay_with_the_process_or_go_back(way: str, kept_mb: range) -> None:
    done = subprocess.run([sys.executable, "-c", WORK, way], capture_output=True, text=True, check=True)
    assert int(done.stdout) in kept_mb
