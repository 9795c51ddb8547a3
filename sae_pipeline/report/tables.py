"""The tables of the report: the parts all are made of, facts, matched autoencoders, lineage."""

from collections.abc import Iterable, Sequence

import pandas as pd

from sae_pipeline.report.formatting import MISSING, measured, number, share
from sae_pipeline.report.html import Child, Markup, tag
from sae_pipeline.report.inputs import Facts, LineageNode
from sae_pipeline.report.quantities import QUANTITIES
from sae_pipeline.report.sense import best

_INTERVALS = ("l0", "nmse", "dce")
_KEY_FIGURES = 5
_SHARES = ("explained_variance", "recovered_zero", "recovered_mean", "dead", "silent", "dense")


def table(head: Sequence[Child], rows: Iterable[Markup]) -> Markup:
    """A table that scrolls within its own box; `rows` are `<tr>` elements, `head` texts or cells of `column`."""
    header = tag("tr", *(name if isinstance(name, Markup) else column(name, class_=None) for name in head))
    return tag("div", tag("table", tag("thead", header), tag("tbody", *rows)), class_="scroll")


def column(label: Child, *, class_: str | None = "num", title: str | None = None, span: int = 1) -> Markup:
    """The head of one column, by default of numbers."""
    return tag("th", label, scope="col", class_=class_, title=title, colspan=str(span) if span > 1 else None)


def cell(value: Child, *, title: str | None = None, class_: str | None = "num") -> Markup:
    """One table cell, by default a number; a missing one says why in its title."""
    faded = class_ if value != MISSING else " ".join(filter(None, [class_, "missing"]))
    return tag("td", value, class_=faded, title=title or None)


def facts_table(facts: Facts) -> Markup:
    """Labels and values as a two-column list; nested dictionaries become further labelled rows."""
    items = [tag("div", tag("dt", label), tag("dd", number(value))) for label, value in _flat(facts)]
    return tag("dl", *items, class_="facts")


def _flat(facts: Facts, prefix: str = "") -> Iterable[tuple[str, object]]:
    for label, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{label.replace('_', ' ')}: ")
        else:
            yield prefix + label.replace("_", " "), value


def matched_rows(matched: pd.DataFrame) -> Markup:
    """The matched table: one row per autoencoder, equal k together, the lowest NMSE and ΔCE of each k in bold."""
    lowest = {name: set(best(matched, name).index) for name in ("nmse", "dce")}
    head: list[Child] = ["autoencoder", column("n"), column("k")]
    for name, quantity in QUANTITIES.items():
        head.append(column(quantity.label, title=quantity.meaning, span=2 if name in _INTERVALS else 1))
    head.append("identity")
    rows, previous = [], None
    for place, row in matched.iterrows():
        group = (row["recipe"], row["k"])
        first = previous is not None and str(group) != str(previous)
        bold = {name for name, places in lowest.items() if place in places}
        rows.append(tag("tr", *_matched_cells(row, bold), class_="first" if first else None))
        previous = group
    return table(head, rows)


def _matched_cells(row: "pd.Series[float]", bold: set[str]) -> list[Markup]:
    cells = [
        tag("th", tag("code", str(row["autoencoder"])), scope="row", class_="autoencoder"),
        cell(number(int(row["n"]))),
        cell(
            MISSING if pd.isna(row["k"]) else number(int(row["k"])),
            title="this recipe has no fixed k" if pd.isna(row["k"]) else None,
        ),
    ]
    for name in QUANTITIES:
        note, value = str(row[f"{name}_note"]), float(row[name])
        if name in _INTERVALS:
            text, half = measured(value, float(row[f"{name}_lo"]), float(row[f"{name}_hi"]))
            strong: Child = tag("strong", text) if name in bold else text
            cells += [cell(strong, title=note), cell(half, class_="half", title=_bounds(row, name))]
        else:
            cells.append(cell(share(value) if name in _SHARES else number(value), title=note))
    return [*cells, tag("td", tag("code", str(row["sae_id"])[:12]), class_="id")]


def _bounds(row: "pd.Series[float]", name: str) -> str | None:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    return None if pd.isna(low) or pd.isna(high) else f"[{number(float(low), 4)}, {number(float(high), 4)}]"


def lineage_table(nodes: Sequence[LineageNode]) -> Markup:
    """Artefacts with stage, identity, version and key figures."""
    rows = [
        tag(
            "tr",
            tag("th", node.stage, scope="row"),
            tag("td", tag("code", node.name)),
            tag("td", tag("code", node.identity[:12]), class_="id", title=node.identity),
            cell(number(node.version)),
            _key_figures(node),
        )
        for node in nodes
    ]
    return table(["stage", "artefact", "identity", column("version"), "key figures"], rows)


def _key_figures(node: LineageNode) -> Markup:
    """The first few figures; all of them in the title."""
    texts = [f"{label} {number(value)}" for label, value in _flat(node.figures)]
    shown = "; ".join(texts[:_KEY_FIGURES]) + (" …" if len(texts) > _KEY_FIGURES else "")
    return cell(shown or MISSING, class_=None, title="; ".join(texts) or "none recorded")
