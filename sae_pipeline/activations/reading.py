"""A site's published activations for whoever wants to look at them: rows, and the token that each belongs to."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.layout import open_activations
from sae_pipeline.store import Artefact, Outputs
from sae_pipeline.tokens import Tokens


class Origin(NamedTuple):
    """Where a row comes from: the document's name, the token's place in it (-1: a BOS put in front), the token's id."""

    document: str
    position: int
    token_id: int


class SiteActivations:
    """The raw activations of a site on the training split, in context order; see `sae_pipeline.open_activations`.

    Attributes:
        n_rows: rows that are here.
        d: values of a row.
        tokens: what they were made from.
    """

    def __init__(self, activations: Artefact, tokens: Tokens) -> None:
        self._array, self.tokens = open_activations(activations), tokens
        self.d: int = self._array.shape[1]
        self.n_rows: int = min(self._array.n_rows, self._array.n_kept * self._array.shard_rows)

    @classmethod
    def open(cls, outputs: Outputs, study: str, site: str) -> Self:
        """The activations of `site` that `study` uses.

        Raises:
            ActivationError: the study has none at this site; names the sites it has.
            NotPublished: they, or their tokens, are gone.
            Damaged: a file of theirs is not as published.
        """
        stage = "activations/"
        sites = {node[len(stage) :]: where for node, where in outputs.pointers(study).items() if node.startswith(stage)}
        if site not in sites:
            there = f"there are {', '.join(sites)}" if sites else f"run it first: sae-pipeline run {study}"
            raise ActivationError(f"study {study} has no activations of {site} in {outputs.root}; {there}")
        activations = Artefact.open(outputs.root / sites[site])
        identity = activations.lineage["inputs"]["tokens"]
        folders = sorted((outputs.root / "artefacts" / "tokens").glob(f"*-{identity[:12]}"))
        missing = outputs.artefact_dir("tokens", "*", identity)
        return cls(activations, Tokens.open(Artefact.open(folders[0] if folders else missing)))

    def __len__(self) -> int:
        return self.n_rows

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows `start` to `stop` as float32 [stop - start, d], exactly as stored, every checksum verified.

        Raises:
            Damaged: a shard is not as it was published; names file and cause.
            PipelineError: there are no such rows.
        """
        return self._array.read_float32(start, stop)

    def origin(self, row: int) -> Origin:
        """The token whose activation a row is."""
        document, position = self.tokens.trace("train", row)
        context, place = self.tokens.split("train").locate(row)
        return Origin(document, position, int(self.tokens.split("train").ids(context, context + 1)[0, place]))
