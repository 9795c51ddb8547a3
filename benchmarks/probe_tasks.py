"""The exact probe tasks of the running interpreter's standard library, with their controls.

Run `python benchmarks/probe_tasks.py [--subject embedded/NAME] [--site NAME.3of4.resid_post]`; without them the demo's
subject and site are taken. Writes results/probe_tasks.json and the table in docs/probe_tasks.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sae_pipeline.embedded.concepts import CATALOGUE, TEST, TRAIN, ProbeSet, Sampling, build_probe_set, by_card
from sae_pipeline.embedded.concepts.controls import Controls, fit_controls
from sae_pipeline.embedded.concepts.residuals import activations_at_places
from sae_pipeline.store import Console
from sae_pipeline.study import SubjectConfig, load_study, resolve_site
from sae_pipeline.subjects import load_subject, load_tokenizer
from sae_pipeline.tokens import stdlib_documents

CHECKOUT = Path(__file__).parents[1]
RESULT = CHECKOUT / "benchmarks" / "results" / "probe_tasks.json"
PAGE = CHECKOUT / "docs" / "probe_tasks.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def parse() -> tuple[SubjectConfig, str]:
    """Subject and site of the command line, those of the demo by default."""
    demo = load_study(CHECKOUT / "studies" / "demo.yaml")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default=demo.subject.id)
    parser.add_argument("--site", default=next(iter(demo.sites)))
    arguments = parser.parse_args()
    return SubjectConfig(alias="code", id=arguments.subject), arguments.site


def measure(config: SubjectConfig, site_text: str, sampling: Sampling) -> dict[str, Any]:
    """Build the probe set, run the subject, fit the controls."""
    marks = [time.perf_counter()]
    train, test = by_card(stdlib_documents(), config, root=CHECKOUT)
    probe_set = build_probe_set(train, test, load_tokenizer(config, root=CHECKOUT), sampling, progress=Console())
    marks.append(time.perf_counter())
    subject = load_subject(config, root=CHECKOUT)
    site = resolve_site(site_text, subject.card.n_layers)
    x_ud = activations_at_places(subject, site, probe_set, progress=Console())
    marks.append(time.perf_counter())
    controls = [fit_controls(probe_set, task, x_ud, seed=sampling.seed) for task in range(len(probe_set.tasks))]
    marks.append(time.perf_counter())
    return {
        "python": platform.python_version(),
        "subject": config.id,
        "site": str(site),
        "sampling": asdict(sampling),
        "probe_set_sha256": probe_set.fingerprint(),
        "documents": len(probe_set.documents),
        "skipped": list(probe_set.skipped),
        "contexts": len(probe_set.length_c),
        "tokens": int(probe_set.length_c.sum()),
        "rows": len(probe_set.label_r),
        "seconds": dict(zip(("rows", "activations", "controls"), np.diff(marks).round(1).tolist(), strict=True)),
        "tasks": [entry(probe_set, task, found) for task, found in enumerate(controls)],
        "dropped": [asdict(dropped) for dropped in probe_set.dropped],
    }


def entry(probe_set: ProbeSet, task: int, controls: Controls) -> dict[str, Any]:
    """One task: counts, scores, marks."""
    rows = {split: probe_set.rows(task, split) for split in (TRAIN, TEST)}
    return {
        **asdict(probe_set.tasks[task]),
        "rows": {split: int(found.size) for split, found in rows.items()},
        "files": {split: int(np.unique(probe_set.document_r[found]).size) for split, found in rows.items()},
        "controls": asdict(controls),
        "lexical": controls.lexical,
        "hard": controls.hard,
    }


def table(result: dict[str, Any]) -> str:
    """What the page shows of a result."""
    python, subject, site = result["python"], result["subject"], result["site"]
    lines = [
        f"Standard library of Python {python}, subject `{subject}`, site `{site}`: {len(result['tasks'])} tasks, "
        f"{result['rows']:,} rows in {result['contexts']:,} contexts of {result['documents']} files.",
        "",
        "| task | rows train / test | files | token | pair | linear | permuted | AUC token | AUC linear | mark |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(table_row, result["tasks"]),
        "",
        "Dropped:",
        "",
        *(f"- `{item['name']}`: {item['reason']}." for item in result["dropped"]),
        "",
        "| concept | characters that have it |",
        "|---|---|",
        *(f"| `{concept.name}` | {concept.description} |" for concept in CATALOGUE),
    ]
    return "\n".join(lines)


def table_row(task: dict[str, Any]) -> str:
    """One line of the table."""
    scores, rows, files = task["controls"], task["rows"], task["files"]
    nats = [f"{scores[name]['cross_entropy']:.3f}" for name in ("token", "token_pair", "linear", "permuted")]
    nats[2] += f" ± {scores['linear']['standard_error']:.3f}"
    marks = [name for name, holds in (("long", "long_range"), ("lexical", "lexical"), ("hard", "hard")) if task[holds]]
    cells = [
        f"`{task['name']}`",
        f"{rows[TRAIN]:,} / {rows[TEST]:,}",
        f"{files[TRAIN]} / {files[TEST]}",
        *nats,
        *(f"{scores[name]['auc']:.3f}" for name in ("token", "linear")),
        ", ".join(marks),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    config, site = parse()
    result = measure(config, site, Sampling())
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    shown = table(result)
    PAGE.write_text(f"{before}{BEGIN}\n{shown}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
