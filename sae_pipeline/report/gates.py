"""The gate table: what failed or warned, row by row, then what passed, gathered."""

import pandas as pd

from sae_pipeline.report.formatting import MISSING, number
from sae_pipeline.report.html import Child, Markup, join, tag
from sae_pipeline.report.tables import cell, column, table

_HEAD = ("verdict", "stage", "check", "statistic", column("value"), "limit", "severity", column("artefacts"))


LEFT_OUT = "left out"
"""Value of a check that does not apply; its limit says why."""


def tally(gates: pd.DataFrame) -> dict[str, int]:
    """How many checks failed, warned and passed."""
    verdicts = verdict(gates)
    return {word: int((verdicts == word).sum()) for word in ("failed", "warning", "passed")}


def verdict(gates: pd.DataFrame) -> "pd.Series[str]":
    """ "passed", "warning" (missed, but does not block), "failed" or "left out" (not judged) for each row."""
    words = gates["severity"].map(lambda severity: "failed" if severity == "block" else "warning")
    words = words.where(~gates["passed"].astype(bool), "passed")
    return words.where(gates["value"].astype(str) != LEFT_OUT, LEFT_OUT).astype(str)


def gate_table(gates: pd.DataFrame) -> Markup:
    """Failures, warnings and what was left out, one row each; then passes by stage and check with their values."""
    words = verdict(gates)
    alone = ("failed", "warning", LEFT_OUT)
    missed = [_missed(row, word) for word in alone for _, row in gates[words == word].iterrows()]
    stages = gates[words == "passed"].assign(stage=lambda passed: passed["node"].astype(str).str.split("/").str[0])
    passed = [_passed(group) for _, group in stages.groupby(["stage", "check", "column", "limit"], sort=False)]
    return table(_HEAD, [*missed, *passed])


def _missed(row: "pd.Series[str]", word: str) -> Markup:
    where = f" at {row['where']}" if pd.notna(row["where"]) and row["where"] else None
    return _row(
        str(row["node"]),
        row,
        join(_value(row["value"]), tag("span", where, class_="where") if where else None),
        word,
        1,
    )


def _passed(group: pd.DataFrame) -> Markup:
    first = group.iloc[0]
    return _row(str(first["stage"]), first, _range(group["value"]), "passed", len(group))


def _row(name: str, row: "pd.Series[str]", value: Child, word: str, artefacts: int) -> Markup:
    return tag(
        "tr",
        tag("td", tag("span", word, class_=f"verdict {word}")),
        tag("th", tag("code", name), scope="row"),
        cell(str(row["check"]), class_=None),
        cell(tag("code", str(row["column"])), class_=None),
        cell(value),
        cell(str(row["limit"]), class_="limit"),
        cell("blocks" if row["severity"] == "block" else "warns", class_=None),
        cell(number(artefacts)),
    )


def _value(value: object) -> str:
    """A number, a text, or "none" for an empty one."""
    if value is None or value != value:
        return MISSING
    return number(value) or "none"


def _range(values: "pd.Series[float]") -> str:
    """The smallest and the largest value, or the distinct texts."""
    as_numbers = pd.to_numeric(values, errors="coerce")
    if as_numbers.isna().any():
        return ", ".join(dict.fromkeys(_value(value) for value in values))
    low, high = number(as_numbers.min()), number(as_numbers.max())
    return low if low == high else f"{low} … {high}"
