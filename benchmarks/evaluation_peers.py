"""The same figures from other packages: where they are right we agree, and what is wrong with them is shown.

Run `python benchmarks/evaluation_peers.py`: evaluation_peers/fixture.py writes a small model, tokens and an
autoencoder, and says what this project finds; evaluation_peers/ask.py calls the packages' own functions on them, in one
throw-away environment made as those of conformance.py, with sae-bench added without its pins (it asks for NumPy below
2). Writes results/evaluation_peers.json and the tables in docs/metrics.md. About three minutes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance import CHECKOUT, PEERS, install

FOLDER = CHECKOUT / "benchmarks" / "evaluation_peers"
RESULT = CHECKOUT / "benchmarks" / "results" / "evaluation_peers.json"
PAGE = CHECKOUT / "docs" / "metrics.md"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
OURS = "sae-pipeline"
SAE_BENCH = "0.6.0"
BESIDE = ("scikit-learn", "tabulate")
"""What sae-bench imports and sae-lens does not bring."""
AGREE, DIFFER = 1e-5, 0.02
"""Relative: how far sums in float32 may be off one another, and how far a figure must be off to be shown as another."""

AGREEMENT = {
    "explained_variance": "explained variance",
    "l0": "L0",
    "cosine": "mean cosine",
    "l2_ratio": "mean of ‖x̂‖ / ‖x‖",
    "relative_bias": "relative bias, all rows in one batch",
    "ce_clean": "cross-entropy of the model",
    "ce_spliced": "… with x̂ in place of x",
    "ce_zero": "… with 0 in place of x",
    "loss_recovered": "loss recovered, against 0",
    "kl": "KL(clean ‖ spliced)",
    "kl_zero": "KL(clean ‖ zero)",
}
DEFECTS = {
    "explained_variance_of_the_mean": "explained variance of predicting the mean: 0 by definition",
    "mse": "squared error of a row, all rows in one batch",
    "mse_in_small_batches": "… in batches an eighth as large",
    "kl_confident": "KL(clean ‖ spliced) of a model that is sure of itself",
    "probe_test": "probes of coin tosses, accuracy reported: 0.5 is to know nothing",
    "probe_fresh": "… on rows that nothing was chosen on",
}
"""Where the packages differ from us or among one another."""


def environment(folder: Path) -> Path:
    """The interpreter of an environment with both packages; CalledProcessError if they cannot be installed."""
    python = install("sae-lens", PEERS["sae-lens"], folder)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, "-c", str(folder / "constraints.txt"), *BESIDE], check=True)
    subprocess.run([*pip, "--no-deps", f"sae-bench=={SAE_BENCH}"], check=True)
    return python


def say(python: Path, script: str, *arguments: str) -> dict[str, float | None]:
    """The answers of a script."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), "-W", "ignore", str(FOLDER / script), *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environ).stdout)


def measure() -> dict[str, Any]:
    """What each of the three says."""
    with tempfile.TemporaryDirectory() as fixture, tempfile.TemporaryDirectory() as folder:
        packages = {OURS: {"version": version(OURS), "figures": say(Path(sys.executable), "fixture.py", fixture)}}
        python = environment(Path(folder))
        for name, pinned in (("sae-lens", PEERS["sae-lens"].version), ("sae-bench", SAE_BENCH)):
            packages[name] = {"version": pinned, "figures": say(python, "ask.py", name, fixture)}
    about = {"python": platform.python_version(), "torch": version("torch"), "agree": AGREE, "differ": DIFFER}
    return {**about, "packages": packages}


def agrees(value: float | None, ours: float, tolerance: float) -> bool:
    return value is not None and abs(value - ours) <= tolerance * max(abs(ours), 1e-3)


def shown(result: dict[str, Any], name: str, figure: str) -> str:
    """A cell: the figure, bold where it is not ours; NaN where it is none, a dash where the package has none."""
    figures = result["packages"][name]["figures"]
    if figure not in figures:
        return "—"
    value, ours = figures[figure], result["packages"][OURS]["figures"][figure]
    if value is None:
        return "**NaN**"
    text = f"{0.0 if abs(value) < 1e-6 else value:.5g}"
    return text if agrees(value, ours, result["agree" if figure in AGREEMENT else "differ"]) else f"**{text}**"


def render(result: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    packages = result["packages"]
    head = "| | " + " | ".join(f"{name} {each['version']}" for name, each in packages.items()) + " |"
    lines = []
    for figures in (AGREEMENT, DEFECTS):
        rows = [[text, *(shown(result, name, figure) for name in packages)] for figure, text in figures.items()]
        lines += ["", head, "|---" * (len(packages) + 1) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    made = f"Python {result['python']}, PyTorch {result['torch']}. Bold differs from ours: by more than"
    return "\n".join([*lines[1:], "", f"{made} {result['agree']:g} of it above, {result['differ']:g} of it below."])


def page(text: str, result: dict[str, Any]) -> str:
    """The page with the tables that belong to a result."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{render(result)}\n{END}{after}"


def main() -> None:
    result = measure()
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(render(result))


if __name__ == "__main__":
    main()
