"""Statistics that gate a tokens artefact, computed from what was written and not from what was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_pipeline.store import Artefact, Draft
from sae_pipeline.tokens.read import Contexts, Tokens
from sae_pipeline.tokens.schema import SHARD_CONTEXTS, SPLITS
from sae_pipeline.tokens.split import HELD_OUT, TRAIN
from sae_pipeline.tokens.tables import overlap_share

if TYPE_CHECKING:
    import pandas as pd


def audit_frame(source: Artefact | Draft) -> pd.DataFrame:
    """One row per split.

    Columns: split, contexts, rows, rows_minus_mask (Σ over contexts |rows in the index - unmasked positions|),
    budget_share (rows / rows asked for), documents, documents_in_both, clusters_in_both, largest_document_share (of the
    rows), crossing_contexts (reaching past their document's end), min_id, max_id, bad_padding (cells beyond a context's
    length that are not padding), padding_share, rows_added (training rows beyond those of the version that it
    continues), overlap (share of held-out 64-token windows that occur in training documents; 0 for train, where it has
    no meaning).
    """
    import pandas as pd

    tokens = Tokens.open(source)
    used = {split: np.unique(tokens.split(split).document) for split in SPLITS}
    cluster_of = tokens.documents["cluster"].to_numpy()
    shared = {
        "documents_in_both": np.intersect1d(used[TRAIN], used[HELD_OUT]).size,
        "rows_added": tokens.split(TRAIN).n_rows - tokens.rows_before,
        "clusters_in_both": np.intersect1d(cluster_of[used[TRAIN]], cluster_of[used[HELD_OUT]]).size,
    }
    rows = [{"split": split, **_split_row(tokens, split), **shared} for split in SPLITS]
    frame = pd.DataFrame(rows)
    frame["overlap"] = [overlap_share(tokens.documents) if split == HELD_OUT else 0.0 for split in SPLITS]
    return frame


def _split_row(tokens: Tokens, split: str) -> dict[str, Any]:
    contexts = tokens.split(split)
    rows_c = np.diff(contexts.row_offsets)
    per_document = np.bincount(contexts.document, weights=rows_c)
    taken_c = contexts.lengths - tokens.layout.prefixed(contexts.start)
    ends_c = tokens.documents["n_tokens"].to_numpy()[contexts.document]
    return {
        "contexts": contexts.n,
        "rows": contexts.n_rows,
        "budget_share": contexts.n_rows / tokens.requested_rows[split],
        "documents": np.unique(contexts.document).size,
        "largest_document_share": float(per_document.max() / max(1, contexts.n_rows)),
        "crossing_contexts": int((contexts.start + taken_c > ends_c).sum()),
        "padding_share": 1 - float(contexts.lengths.sum()) / (contexts.n * contexts.context),
        **_cell_statistics(contexts, tokens.layout.pad_id),
    }


def _cell_statistics(contexts: Contexts, pad_id: int) -> dict[str, int]:
    rows_minus_mask, bad_padding, lowest, highest = 0, 0, np.iinfo(np.int64).max, -1
    rows_c = np.diff(contexts.row_offsets)
    for a in range(0, contexts.n, SHARD_CONTEXTS):
        b = min(a + SHARD_CONTEXTS, contexts.n)
        ids_cl = contexts.ids(a, b)
        padding_cl = np.arange(contexts.context) >= contexts.lengths[a:b, None]
        rows_minus_mask += int(np.abs(rows_c[a:b] - contexts.row_mask(a, b).sum(axis=1)).sum())
        bad_padding += int((ids_cl[padding_cl] != pad_id).sum())
        lowest, highest = min(lowest, int(ids_cl.min())), max(highest, int(ids_cl.max()))
    return {"rows_minus_mask": rows_minus_mask, "bad_padding": bad_padding, "min_id": lowest, "max_id": highest}
