"""The six stages as one small drawing: boxes joined by arrows, each with what was published there."""

from collections.abc import Sequence

from sae_pipeline.report.formatting import number
from sae_pipeline.report.html import Markup, tag
from sae_pipeline.report.inputs import STAGES, LineageNode

_BOX, _GAP, _HEIGHT = 148, 30, 74


def chain(nodes: Sequence[LineageNode]) -> Markup:
    """An inline SVG of tokens → … → scaling; a stage without an artefact is drawn faint."""
    parts = []
    for place, stage in enumerate(STAGES):
        here = [node for node in nodes if node.stage == stage]
        left = place * (_BOX + _GAP)
        if place:
            parts.append(_arrow(left - _GAP))
        parts.append(_box(left, stage, here))
    width = len(STAGES) * (_BOX + _GAP) - _GAP
    drawing = tag(
        "svg", *parts, viewBox=f"-1 -1 {width + 2} {_HEIGHT + 2}", role="img", aria_label="Chain of the six stages"
    )
    return tag("div", drawing, class_="chain")


def _box(left: int, stage: str, here: Sequence[LineageNode]) -> Markup:
    if not here:
        second, third = "nothing published", ""
    elif len(here) == 1:
        second, third = here[0].identity[:12], f"version {here[0].version}"
    else:
        versions = sorted({node.version for node in here})
        second = f"{number(len(here))} artefacts"
        third = f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"
    middle = str(left + _BOX // 2)
    return tag(
        "g",
        tag("rect", x=str(left), y="0", width=str(_BOX), height=str(_HEIGHT), rx="7"),
        tag("text", stage, x=middle, y="26", class_="name"),
        tag("text", second, x=middle, y="46", class_="id"),
        tag("text", third, x=middle, y="62", class_="small"),
        class_="stage" if here else "stage empty",
    )


def _arrow(left: int) -> Markup:
    y, tip = _HEIGHT // 2, left + _GAP - 5
    return tag("path", d=f"M{left + 5} {y}H{tip}m-6 -4.5l6 4.5l-6 4.5", class_="arrow")
