"""Shards of published activations made again, in a draft of their own."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from sae_pipeline.activations.closeness import Closeness, rounding_tolerance
from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.harvesting import harvest
from sae_pipeline.activations.layout import ACTS, HARVEST
from sae_pipeline.activations.micro_batch import MicroBatch
from sae_pipeline.activations.takeover import TAKEN
from sae_pipeline.store import Artefact, Damaged, Draft, Outputs, Progress, ShardedArray, decode_float32
from sae_pipeline.store.array_format import ShardSeal
from sae_pipeline.store.atomic import unseal
from sae_pipeline.store.collect import set_aside
from sae_pipeline.study import ActivationsConfig, Site, identity_of
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Tokens


@dataclass(frozen=True)
class Recipe:
    """What shards are made again from: exactly what the artefact was made from. `compute_dtype` is the subject's."""

    subject: Subject
    tokens: Tokens
    config: ActivationsConfig
    compute_dtype: str


@dataclass(frozen=True)
class WholeShard:
    """A whole shard to repair others with: its file, and the bytes of its commit record."""

    path: Path
    record: bytes

    @property
    def seal(self) -> ShardSeal:
        """The checksums of its file, as its record has them."""
        return ShardSeal.of(unseal(self.path, self.record))

    @property
    def commit_sha256(self) -> str:
        """Of its record: tells whether it is the one that an artefact lists."""
        return hashlib.sha256(self.record).hexdigest()


class Remaking:
    """A draft of its own in which shards are made again, begun when the first is asked for.

    To collections it is an unfinished draft that no study asks for: one that a death leaves goes with the next.
    """

    def __init__(self, outputs: Outputs, artefact: Artefact, recipe: Callable[[], Recipe], progress: Progress) -> None:
        self._outputs, self._artefact, self._recipe, self._progress = outputs, artefact, recipe, progress
        self._draft: Draft | None = None
        self._made: Recipe | None = None

    def shard(self, i: int) -> WholeShard:
        """Shard i, made again and verified."""
        array = self._harvested(i)
        array.read_shard(i)
        return WholeShard(array.shard_path(i), array.commit_path(i).read_bytes())

    def rows(self, i: int) -> npt.NDArray[np.float32]:
        """The rows of a shard that was made again."""
        array = self._harvested(i)
        return decode_float32(array.read_shard(i), array.logical_dtype)

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        made = self._recipe_once()
        return rounding_tolerance(made.config.dtype, made.compute_dtype)

    def evidence(self, found: Closeness, tolerance: float) -> dict[str, Any]:
        """What a repair record says beside the checksums."""
        return {
            "max_difference": found.values,
            "chunks_compared": found.chunks,
            "moments_difference": found.moments,
            "tolerance": tolerance,
            "remade_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "remade_with": {
                "machine": platform.machine(),
                "device": str(self._recipe_once().subject.device),
                "torch": torch.__version__,
            },
        }

    def _recipe_once(self) -> Recipe:
        self._made = self._made or self._recipe()
        return self._made

    def _harvested(self, i: int) -> ShardedArray:
        made = self._recipe_once()
        draft = self._draft = self._draft or self._begin(made)
        self._as_then(draft, i)
        site, progress = Site.parse(self._artefact.key), self._progress
        harvest(made.subject, made.tokens, {site: draft}, made.config, progress=progress, shards=range(i, i + 1))
        array = draft.array(ACTS)
        if _form(array) != _form(self._artefact.array(ACTS)):
            raise ActivationError(
                f"{self._artefact.path}: its shards are {_form(self._artefact.array(ACTS))}, made again they would be "
                f"{_form(array)}; this is not what it was made from"
            )
        return array

    def _begin(self, made: Recipe) -> Draft:
        if made.tokens.split("train").n_rows != self._artefact.array(ACTS).n_rows:
            raise ActivationError(f"{self._artefact.path}: was made from other tokens, with another number of rows")
        lineage = {"repairs": self._artefact.identity}
        identity, key = identity_of(lineage), f"repair-{self._artefact.key}"
        with self._outputs.keeping():
            path = self._outputs.artefact_dir(self._artefact.stage, key, identity)
            return Draft.open(path, stage=self._artefact.stage, key=key, identity=identity, lineage=lineage)

    def _as_then(self, draft: Draft, i: int) -> None:
        """Note what was chosen at run time when the shard was made: its micro-batch, the limit for outliers."""
        size = MicroBatch.of(self._artefact)
        try:
            then = size.of_shard(self._artefact.array(ACTS).commit(i))
        except Damaged:
            then = size.size
        chosen = {name: value for name, value in self._artefact.read_json(HARVEST).items() if name != TAKEN}
        draft.write_json(HARVEST, chosen | MicroBatch(then, then).to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._draft is not None:
            self._draft.close()
            if kind is None:  # else the next repair goes on with what was made
                shutil.rmtree(set_aside(self._outputs, self._draft.path), ignore_errors=True)


def _form(array: ShardedArray) -> tuple[object, ...]:
    return array.shape, array.logical_dtype, array.shard_rows, array.chunk_rows
