"""Metadata a person can read: flat numbers and at most two small plots per asset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def numbers(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a summary to metadata values; nested keys are joined by `_`, missing numbers are left out."""
    found: dict[str, Any] = {}
    for key, value in summary.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}_")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        elif isinstance(value, list | tuple):
            found[name] = dg.MetadataValue.json(list(value))
    return found


def plots(**draw: Callable[[], Figure]) -> dict[str, dg.MetadataValue]:  # type: ignore[type-arg]
    """Draw figures as embedded images, one metadata entry each."""
    from sae_pipeline.report import png_data_uri

    return {name: dg.MetadataValue.md(f"![{name}]({png_data_uri(figure())})") for name, figure in draw.items()}


def table(frame: pd.DataFrame, columns: Sequence[str], most: int = 40) -> dg.TableMetadataValue:
    """The first rows of some columns as a table; numbers with four significant digits."""
    shown = frame[list(columns)].head(most)
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in shown.to_dict("records")]
    schema = dg.TableSchema([dg.TableColumn(name, "string") for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "—" if value != value else f"{value:.4g}"
    return str(value)
