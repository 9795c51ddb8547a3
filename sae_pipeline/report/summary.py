"""The report as an artefact: the page, and its summary as JSON and for a terminal."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from sae_pipeline.report.formatting import MISSING, number, share
from sae_pipeline.report.gates import tally
from sae_pipeline.report.inputs import ReportInputs
from sae_pipeline.report.matched import matched_table
from sae_pipeline.report.page import render
from sae_pipeline.report.quantities import QUANTITIES
from sae_pipeline.store import Draft

PAGE, SUMMARY = "index.html", "summary.json"

_COLUMNS = {"l0": number, "nmse": number, "dce": number, "recovered_mean": share, "dead": share, "silent": share}


def write_report(inputs: ReportInputs, draft: Draft) -> dict[str, Any]:
    """Write index.html and summary.json into a draft; returns the summary."""
    content = summarise(inputs)
    draft.write_bytes(PAGE, render(inputs).encode())
    draft.write_json(SUMMARY, content)
    return content


def summarise(inputs: ReportInputs) -> dict[str, Any]:
    """The study in JSON: counts, and `rows` with one entry per site and autoencoder; missing values are null.

    `null` names the null control that the study is, and is absent where it is none.
    """
    rows = [
        {"site": site.site, "autoencoder": row["autoencoder"], "sae_id": row["sae_id"]}
        | {name: _plain(row[name]) for name in QUANTITIES}
        for site in inputs.sites
        for _, row in matched_table(site.metrics, site.autoencoders).iterrows()
    ]
    null = {"null": inputs.null} if inputs.null else {}
    return {"study": inputs.study, **null, "autoencoders": len(rows), "checks": tally(inputs.gates), "rows": rows}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def summary_table(path: Path) -> str:
    """The summary.json at `path` as an aligned text table, for a terminal."""
    content = json.loads(path.read_text())
    entries = pd.DataFrame(content["rows"], columns=["site", "autoencoder", *_COLUMNS])
    lines = [f"Null control   {content['null']}", ""] if "null" in content else []
    for site, group in entries.groupby("site", sort=False):
        head = ["autoencoder", *(QUANTITIES[name].label for name in _COLUMNS)]
        lines += [str(site), *_aligned([head, *(_cells(row) for _, row in group.iterrows())]), ""]
    checks = content["checks"]
    tail = f"Checks   {checks['passed']} passed, {checks['warning']} warned, {checks['failed']} failed"
    return "\n".join([*lines, tail])


def _cells(row: "pd.Series[float]") -> list[str]:
    values = [MISSING if pd.isna(row[name]) else written(float(row[name])) for name, written in _COLUMNS.items()]
    return [str(row["autoencoder"]), *values]


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first column flush left, the others right."""
    first, *rest = [len(max(column, key=len)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(first), *(text.rjust(width) for text, width in zip(row[1:], rest, strict=True))])
        for row in rows
    ]
