"""A family of code models in three sizes and two architectures, and its loss against compute.

    python -m sae_pipeline.embedded.family --out DIR [--model NAME …]

trains what is missing in DIR: of each model `model.safetensors`, `config.json`, tokenizer, `card.json` and `card.md`,
and of each shorter run `DIR/runs/<model>-<steps>.json`; when all are there, `family.json` and `family.md` list loss
against compute.
Killed and started again it resumes and ends with the same bits, given the same number of threads.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_pipeline.embedded.loop import train_model
from sae_pipeline.embedded.measure import held_out_loss, training_flops
from sae_pipeline.embedded.plan import Plan
from sae_pipeline.embedded.train import HELD_OUT_CONTEXTS, Text, build, prepare
from sae_pipeline.store import Console, Progress, read_json, reuse_freed_memory, silent, write_json_atomic
from sae_pipeline.store.atomic import make_dir
from sae_pipeline.store.atomic import replace as write_text
from sae_pipeline.tokens.stdlib import stdlib_documents

FAMILY = {
    "code-small": Plan(steps=8_000, polish_steps=3_000, d_model=64, n_heads=2, lr=6e-3),
    "code-medium": Plan(steps=8_000, polish_steps=3_000, polish_starts="inside", d_model=128, n_heads=4, lr=4e-3),
    "code-llama": Plan(steps=8_000, polish_steps=3_000, architecture="llama", d_model=128, n_heads=4, lr=4e-3),
    "code-large": Plan(steps=10_000, polish_steps=4_000, d_model=256, n_heads=8, lr=2e-3),
}
"""Depth and width of a head stay, so that sizes differ in width alone; the Llama is of the middle size.

"inside" costs the last 64 positions of 512 of the medium one about 0.05 nats against those before them.
"""

SHORTER = {"code-small": (1 / 16, 1 / 4)}
"""Shares of a model's steps for runs of their own, each with its whole schedule, that are measured and not kept."""


def shorter_plans() -> dict[str, tuple[str, Plan]]:
    """The runs that are only measured: file name, and whose shorter sibling with which plan."""
    plans = ((name, _shortened(FAMILY[name], share)) for name, shares in SHORTER.items() for share in shares)
    return {f"{name}-{plan.steps}": (name, plan) for name, plan in plans}


def _shortened(plan: Plan, share: float) -> Plan:
    return replace(plan, steps=round(plan.steps * share), polish_steps=round(plan.polish_steps * share))


def measure_run(text: Text, plan: Plan, out_path: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Train a model, keep what it cost and reached: tokens, FLOPs and held-out nats per token."""
    work_dir = out_path.with_suffix(".work")
    make_dir(work_dir)
    fingerprint = text.split.record()["list_sha256"]
    model = train_model(plan, text.stream, work_dir, fingerprint=fingerprint, progress=progress)
    assert model is not None
    loss = held_out_loss(model, text.held_out_ids, context=plan.n_positions, max_contexts=HELD_OUT_CONTEXTS)
    run = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_tokens": plan.tokens,
        "training_flops": training_flops(model, plan.tokens, plan.mean_context),
        "nats_per_token": loss["nats_per_token"],
    }
    write_json_atomic(out_path, run)
    shutil.rmtree(work_dir)
    return run


def summarise(out_dir: Path) -> dict[str, Any]:
    """Loss against compute over all runs, cheapest first; FileNotFoundError while one is missing."""
    runs: list[dict[str, Any]] = []
    for name in FAMILY:
        card = read_json(out_dir / name / "card.json")
        size = {key: card["size"][key] for key in ("parameters", "training_tokens", "training_flops")}
        named = {"model": name, "architecture": FAMILY[name].architecture}
        runs.append({**named, **size, "nats_per_token": card["loss"]["nats_per_token"], "shipped": True})
    for run, (name, _) in shorter_plans().items():
        named = {"model": name, "architecture": FAMILY[name].architecture}
        runs.append({**named, **read_json(out_dir / "runs" / f"{run}.json"), "shipped": False})
    return {"runs": sorted(runs, key=lambda run: run["training_flops"])}


def family_text(summary: dict[str, Any]) -> str:
    """Loss against compute as Markdown."""
    lines = [
        "# The family: loss against compute",
        "",
        "Runs of their own, each with its whole schedule, on one text; held-out loss over the same tokens.",
        "",
        "| model | parameters | tokens | FLOPs | nats per token | ships |",
        "|---|---|---|---|---|---|",
    ]
    for run in summary["runs"]:
        lines.append(
            f"| {run['model']} | {run['parameters']:,} | {run['training_tokens']:,} | {run['training_flops']:.2e} "
            f"| {run['nats_per_token']:.3f} | {'yes' if run['shipped'] else ''} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of `python -m sae_pipeline.embedded.family`."""
    runs = shorter_plans()
    parser = argparse.ArgumentParser(description="Train the family of code models on this interpreter's library.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--model", nargs="*", choices=[*FAMILY, *runs], help="only these models or shorter runs")
    parser.add_argument("--threads", type=int, help="torch threads; results are bit-equal at the same number only")
    arguments = parser.parse_args(argv)
    reuse_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out_dir = arguments.out.absolute()
    make_dir(out_dir / "runs")
    text = prepare(list(stdlib_documents()), next(iter(FAMILY.values())), progress=Console("text"))
    for name in arguments.model or [*FAMILY, *runs]:
        if name in FAMILY and not (out_dir / name / "card.json").exists():
            build(text, FAMILY[name], out_dir / name, progress=Console(name))
        elif name in runs and not (out_dir / "runs" / f"{name}.json").exists():
            measure_run(text, runs[name][1], out_dir / "runs" / f"{name}.json", progress=Console(name))
    try:
        summary = summarise(out_dir)
        write_json_atomic(out_dir / "family.json", summary)
        write_text(out_dir / "family.md", family_text(summary).encode())
    except FileNotFoundError as missing:
        print(f"family.json waits for {missing.filename}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
