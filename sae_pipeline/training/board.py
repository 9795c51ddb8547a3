"""TensorBoard event files of a training: a view beside the artefacts, never a part of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_pipeline.store import PipelineError


class Board:
    """Writes rows of training logs as scalars over tokens, a folder for each autoencoder.

    Raises PipelineError if TensorBoard, which the pipeline does not depend on, is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PipelineError(
                "training.log: tensorboard is not installed; `pip install tensorboard`, or leave it out"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writers: dict[str, Any] = {}

    def write(self, key: str, row: Mapping[str, Any]) -> None:
        """Add a row of the log of autoencoder `key`. What an interrupted run wrote past its checkpoint is replaced."""
        tokens = int(row["tokens"])
        if key not in self._writers:
            self._writers[key] = self._open(str(self._folder / key), purge_step=tokens)
        for name, value in row.items():
            if name not in ("step", "tokens") and math.isfinite(value):
                self._writers[key].add_scalar(name, value, tokens)

    def close(self) -> None:
        """Write out what is held back."""
        for writer in self._writers.values():
            writer.close()
