"""What freed memory costs on CPU: the shipped model's full forward with glibc's defaults and with `reuse_freed_memory`.

Both run in their own processes, taking turns; the ratio is taken within each turn. Writes results/page_faults.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TURNS = 5

WORK = """
import sys, time
from pathlib import Path
if sys.argv[1] == "reuse":
    from sae_pipeline.store import reuse_freed_memory
    assert reuse_freed_memory()
import torch
from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects import load_subject
subject = load_subject(SubjectConfig(alias="code", id="embedded/code-large"), root=Path("."))
ids_cl = torch.randint(1, 4096, (64, 64), generator=torch.Generator().manual_seed(0))
subject.logits(ids_cl)
started = time.perf_counter()
for _ in range(10):
    subject.logits(ids_cl)
print(10 * ids_cl.numel() / (time.perf_counter() - started))
"""


def tokens_per_s(mode: str) -> float:
    done = subprocess.run([sys.executable, "-c", WORK, mode], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    turns = [{mode: tokens_per_s(mode) for mode in ("default", "reuse")} for _ in range(TURNS)]
    ratios = [turn["reuse"] / turn["default"] for turn in turns]
    result = {
        "unit": "tokens/s",
        "turns": turns,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    path = CHECKOUT / "benchmarks" / "results" / "page_faults.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"reuse_freed_memory / default: {result['ratio']}")


if __name__ == "__main__":
    main()
