"""Weights kept on the way: what an autoencoder would have been, had its training ended earlier."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.store import Draft

FOLDER, TABLE = "milestones", "milestones.parquet"
MILESTONE_ROWS = 16_384
"""Held-out rows to measure milestones on: few, so that they cost little beside training, and the same ones whatever the
size of the evaluation set, on which the identity of an autoencoder does not depend."""


def folder_of(tokens: int) -> str:
    """Folder of the milestone at so many tokens, below the autoencoder's; `Autoencoder.load` reads it."""
    return f"{FOLDER}/{tokens}"


def keep(draft: Draft, autoencoder: Autoencoder, tokens: int) -> None:
    """Write an autoencoder as the milestone at `tokens`. `provenance["training"]` becomes its row of the table."""
    for name, parts in autoencoder.to_files().items():
        draft.write_bytes(f"{folder_of(tokens)}/{name}", *parts)


def write_table(draft: Draft, kept_tokens: list[int], last: dict[str, Any]) -> None:
    """`milestones.parquet`: the figures of the milestones, read back from them, and of the end."""
    rows = [draft.read_json(f"{folder_of(tokens)}/config.json")["provenance"]["training"] for tokens in kept_tokens]
    buffer = io.BytesIO()
    pd.DataFrame([*rows, last]).to_parquet(buffer, index=False)
    draft.write_bytes(TABLE, buffer.getvalue())
