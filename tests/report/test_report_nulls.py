"""A null control is told on the page, in the summary and among the checks."""

import dataclasses
import json
import re
from pathlib import Path

import synthetic_study as study

from sae_pipeline.report import ReportInputs, render, summary_table, write_report
from sae_pipeline.report.gates import LEFT_OUT, gate_table, tally
from sae_pipeline.store import Draft

NULL = "gaussian_cov dataset"


def inputs(null: str | None) -> ReportInputs:
    return dataclasses.replace(study.report_inputs(), sites=[], lineage=[], documents=None, null=null)


def test_the_page_says_so_at_its_head():
    head = render(inputs(NULL)).partition("</header>")[0]
    assert f"null control: {NULL}" in head
    assert "null control" not in render(inputs(None))


def test_the_summary_and_its_table_say_so(tmp_path: Path):
    for null in (NULL, None):
        with Draft.open(tmp_path / str(null), stage="report", key="r", identity="a" * 64, lineage={}) as draft:
            content = write_report(inputs(null), draft)
            path = draft.file("summary.json")
        assert content.get("null") == null == json.loads(path.read_text()).get("null")
        assert summary_table(path).startswith(f"Null control   {NULL}") == bool(null)


def test_checks_left_out_are_neither_passed_nor_hidden():
    gates = study.gates()
    left_out = gates.iloc[:2].assign(value=LEFT_OUT, limit="draws belong to no context", passed=True)
    mixed = gates.astype({"value": object}).iloc[2:]
    mixed = type(gates)([*mixed.to_dict("records"), *left_out.to_dict("records")])
    assert sum(tally(mixed).values()) == len(gates) - 2
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", gate_table(mixed)) if "draws belong to no context" in row]
    assert len(rows) == 2 and all(f">{LEFT_OUT}</span>" in row for row in rows)
