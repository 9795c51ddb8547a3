"""The kernels go through Triton's compiler, not only through its interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")
SHARED_BYTES = 227 << 10  # of one block on compute capability 9.0


def test_every_kernel_compiles_for_a_hopper_gpu_and_selection_uses_its_matrix_units(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("hopper.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {k["kernel"] for k in kernels} == {
        "_select_kernel", "_rescore_kernel", "_decode_kernel", "_window_kernel", "_squares_kernel",
        "_update_rows_kernel", "_update_vector_kernel", "_segment_sums_kernel",
    }  # fmt: skip
    assert max(k["shared_bytes"] for k in kernels) <= SHARED_BYTES
    main = [k for k in kernels if k["kernel"] == "_select_kernel" and not k["constants"]["SUBSET"]]
    assert main and all(k["wgmma"] > 0 for k in main)
