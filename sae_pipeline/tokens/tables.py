"""What a build says about itself: the table of documents and the summary."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.tokens.encoded import Encoded
from sae_pipeline.tokens.overlap import WINDOW_TOKENS, window_overlap
from sae_pipeline.tokens.packing import Layout, Packed
from sae_pipeline.tokens.split import EXCLUDED, HELD_OUT, TRAIN

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Side:
    """The chosen contexts of one split in stored order, the rows of each, and the rows there were to choose from."""

    packed: Packed
    rows: NDArray[np.int64]
    available_rows: int


def document_table(
    encoded: Encoded, sides: NDArray[np.str_], clusters: NDArray[np.int64], chosen: Mapping[str, Side]
) -> pd.DataFrame:
    """One row per document; `overlap_*` tell of the used held-out documents' windows found in training documents."""
    import pandas as pd

    rows = np.zeros(len(encoded), np.int64)
    for side in chosen.values():
        np.add.at(rows, side.packed.document, side.rows)
    held_out = np.unique(chosen[HELD_OUT].packed.document)
    training = (encoded[int(i)] for i in np.flatnonzero(sides == TRAIN))
    overlap = np.full(len(encoded), np.nan)
    overlap[held_out] = window_overlap([encoded[int(i)] for i in held_out], training).by_document
    windows = np.zeros(len(encoded), np.int64)
    windows[held_out] = np.maximum(0, encoded.n_tokens[held_out] - WINDOW_TOKENS + 1)
    return pd.DataFrame(
        {
            "document": np.arange(len(encoded)),
            "id": encoded.names,
            "corpus": encoded.corpora,
            "split": sides,
            "cluster": clusters,
            "n_characters": encoded.characters,
            "n_tokens": encoded.n_tokens,
            "rows": rows,
            "overlap_windows": windows,
            "overlap_share": overlap,
            "sha256": encoded.sha256,
        }
    )


def overlap_share(documents: pd.DataFrame) -> float:
    """Share of the used held-out documents' 64-token windows that occur in training documents; 0 if there are none."""
    windows = documents["overlap_windows"].to_numpy()
    found = windows * documents["overlap_share"].fillna(0.0).to_numpy()
    return float(found.sum() / max(1, windows.sum()))


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as a parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def summarise(
    table: pd.DataFrame, chosen: Mapping[str, Side], requested: Mapping[str, int], layout: Layout
) -> dict[str, Any]:
    """Numbers a person wants to see first."""
    summary: dict[str, Any] = {
        "context": layout.context,
        "documents": len(table),
        "documents_excluded": int((table["split"] == EXCLUDED).sum()),
        "near_duplicates": len(table) - table["cluster"].nunique(),
        "overlap": overlap_share(table),
    }
    for split, side in chosen.items():
        used = table[(table["split"] == split) & (table["rows"] > 0)]
        cells = len(side.packed) * layout.context
        summary |= {
            f"{split}_rows": int(side.rows.sum()),
            f"{split}_rows_requested": requested[split],
            f"{split}_rows_available": side.available_rows,
            f"{split}_contexts": len(side.packed),
            f"{split}_documents": len(used),
            f"{split}_padding_share": 1 - float(side.packed.length.sum()) / cells,
        }
        for corpus, rows in used.groupby("corpus")["rows"].sum().items():
            summary[f"{split}_share_{corpus}"] = float(rows / side.rows.sum())
    return summary
