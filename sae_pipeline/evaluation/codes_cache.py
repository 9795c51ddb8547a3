"""The code cache: held-out rows encoded once per autoencoder, for every metric that reads codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.autoencoders import Autoencoder, Codes
from sae_pipeline.evaluation.errors import CacheMismatch, EvaluationError
from sae_pipeline.evaluation.rows import Block, row_blocks
from sae_pipeline.store import Artefact, Draft, Progress, ShardedArray, silent

RECORD: Final = "codes.json"
CANDIDATES_PER_K: Final = 4
_BLOCK_VALUES: Final = 1 << 24
_BLOCK_ROWS: Final = (64, 8192)
_SHARD_ROWS: Final = 32_768
_SHARD_PAIRS: Final = 1 << 22
_CHUNK_ROWS: Final = 1024

Arrays = dict[str, NDArray[Any]]


def block_rows_of(n: int) -> int:
    """Rows encoded at once for n latents: pre-activations of at most 64 MiB; a function of n alone."""
    low, high = _BLOCK_ROWS
    return int(min(high, max(low, 1 << (max(1, _BLOCK_VALUES // n).bit_length() - 1))))


@dataclass(frozen=True)
class _Encoded:
    """One block of rows encoded: what each row of the cache holds."""

    codes: Codes
    scalars: Arrays


def build_codes(
    draft: Draft,
    autoencoder: Autoencoder,
    evaluation_set: EvaluationSet,
    *,
    sae_id: str,
    evaluation_id: str,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode the rows of an evaluation set into a draft.

    Recipes with a fixed k keep the K = min(n, 4k) largest ReLU(π) of every row, sorted: the first k are the codes, the
    rest candidates for curves beyond k. Others keep every active pair (CSR). Arrays, one entry per row: `indices`
    int32 and `values` float32 [rows, K] or, ragged, [pairs] with `indptr` int64 [rows + 1]; `x2` = ‖u − b_pre‖²,
    `err2` = ‖u − û‖² (float32, of normalised rows u) and `l0` int32.

    Args:
        draft: the open draft; what it already holds is kept.
        autoencoder: the autoencoder, on the device to encode on.
        evaluation_set: the rows.
        sae_id: identity of the autoencoder.
        evaluation_id: identity of the evaluation set.
        progress: told the rows done.

    Returns:
        Summary: sae_id, evaluation_id, n_rows, n, k, width, layout, pairs, mean_l0, max_l0.

    Raises:
        EvaluationError: the autoencoder has another width than the rows, or there are no rows.
    """
    if autoencoder.config.d != evaluation_set.d:
        raise EvaluationError(
            f"the autoencoder reads {autoencoder.config.d} values a token, the evaluation set holds "
            f"{evaluation_set.d}; are they of one site?"
        )
    if not evaluation_set.n_rows:
        raise EvaluationError("the evaluation set has no eligible rows; raise evaluation.tokens")
    writer = _Writer(draft, autoencoder, evaluation_set, progress)
    if autoencoder.config.k is None:
        writer.write_ragged()
    else:
        writer.write_fixed()
    record = {"sae_id": sae_id, "evaluation_id": evaluation_id, **writer.record()}
    draft.write_json(RECORD, record)
    return record


class _Writer:
    def __init__(self, draft: Draft, autoencoder: Autoencoder, rows: EvaluationSet, progress: Progress) -> None:
        self._draft, self._autoencoder, self._rows, self._progress = draft, autoencoder, rows, progress
        self._n, self._k = autoencoder.config.n, autoencoder.config.k
        self._width = None if self._k is None else min(self._n, CANDIDATES_PER_K * self._k)
        self._block_rows = block_rows_of(self._n)

    def write_fixed(self) -> None:
        """Scalars and fixed-width pairs, shard by shard."""
        shapes = _scalar_shapes(self._rows.n_rows)
        for name, dtype in (("indices", "int32"), ("values", "float32")):
            shapes[name] = ((self._rows.n_rows, self._width), dtype)
        arrays = self._arrays(shapes)
        for i, parts in self._shards(arrays):
            pairs = {
                "indices": [part.codes.indices.int().cpu().numpy() for part in parts],
                "values": [part.codes.values.cpu().numpy() for part in parts],
            }
            _write(arrays, i, _joined(parts) | {name: np.concatenate(blocks) for name, blocks in pairs.items()})

    def write_ragged(self) -> None:
        """Scalars first, which say how many pairs there are; then the pairs from a second, identical pass."""
        arrays = self._arrays(_scalar_shapes(self._rows.n_rows))
        for i, parts in self._shards(arrays):
            _write(arrays, i, _joined(parts))
        l0_r = arrays["l0"].read(0, self._rows.n_rows)
        indptr = np.concatenate([[0], np.cumsum(l0_r, dtype=np.int64)])
        pointers = self._arrays({"indptr": (indptr.shape, "int64")})["indptr"]
        for i in range(pointers.n_shards):
            pointers.write_shard(i, indptr[pointers.rows(i)])
        self._write_pairs(int(indptr[-1]))

    def record(self) -> dict[str, Any]:
        """What a reader has to know beside the arrays."""
        l0_r = self._draft.array("l0").read(0, self._rows.n_rows)
        fixed = self._width is not None
        return {
            "n_rows": self._rows.n_rows,
            "n": self._n,
            "k": self._k,
            "width": self._width,
            "layout": "fixed" if fixed else "ragged",
            "pairs": self._rows.n_rows * (self._width or 0) if fixed else int(l0_r.sum()),
            "mean_l0": float(l0_r.mean()),
            "max_l0": int(l0_r.max()),
        }

    def _arrays(self, shapes: dict[str, tuple[Any, str]]) -> dict[str, ShardedArray]:
        return {
            name: self._draft.array(name, shape=shape, dtype=dtype, shard_rows=_SHARD_ROWS, chunk_rows=_CHUNK_ROWS)
            for name, (shape, dtype) in shapes.items()
        }

    def _shards(self, arrays: dict[str, ShardedArray]) -> Iterator[tuple[int, list[_Encoded]]]:
        """The encoded blocks of each shard that some array lacks."""
        first = next(iter(arrays.values()))
        lacking = [i for i in range(first.n_shards) if not all(array.is_committed(i) for array in arrays.values())]
        parts: list[_Encoded] = []
        for block in row_blocks(self._rows, self._block_rows):
            shard = block.start // _SHARD_ROWS
            if shard in lacking:
                parts.append(self._encode(block))
            if block.stop == first.rows(shard).stop and parts:
                yield shard, parts
                parts = []

    def _write_pairs(self, pairs: int) -> None:
        # an autoencoder that never fires still needs arrays of positive length
        shape, shard = (max(1, pairs),), min(_SHARD_PAIRS, -(-max(1, pairs) // _CHUNK_ROWS) * _CHUNK_ROWS)
        arrays = {
            name: self._draft.array(name, shape=shape, dtype=dtype, shard_rows=shard, chunk_rows=_CHUNK_ROWS)
            for name, dtype in (("indices", "int32"), ("values", "float32"))
        }
        held: Arrays = {"indices": np.zeros(0, np.int32), "values": np.zeros(0, np.float32)}
        written = 0
        for block in row_blocks(self._rows, self._block_rows):
            codes = self._encode(block).codes
            new = {"indices": codes.indices.int().cpu().numpy(), "values": codes.values.cpu().numpy()}
            held = {name: np.concatenate([held[name], new[name]]) for name in held}
            while len(held["indices"]) >= shard:
                _write(arrays, written, {name: part[:shard] for name, part in held.items()})
                held = {name: part[shard:] for name, part in held.items()}
                written += 1
        if not pairs:
            held = {name: np.zeros(1, part.dtype) for name, part in held.items()}
        if len(held["indices"]):
            _write(arrays, written, held)

    def _encode(self, block: Block) -> _Encoded:
        autoencoder = self._autoencoder
        u_rd, _ = autoencoder.normaliser.normalise(block.x_rd.to(autoencoder.device))
        if self._width is None:
            codes = autoencoder.encode(u_rd)
            own = codes
        else:
            values, indices = autoencoder.codes_top(u_rd, self._width)
            codes, own = Codes(indices, values), Codes(indices[:, : self._k], values[:, : self._k])
        centred = u_rd.double() - autoencoder.b_pre.double()
        error = u_rd.double() - autoencoder.decode(own).double()
        scalars = {
            "x2": centred.square().sum(1).float().cpu().numpy(),
            "err2": error.square().sum(1).float().cpu().numpy(),
            "l0": own.l0_b.int().cpu().numpy(),
        }
        self._progress.update(block.stop, self._rows.n_rows, "rows")
        return _Encoded(codes, scalars)


def _scalar_shapes(n_rows: int) -> dict[str, tuple[Any, str]]:
    return {"x2": ((n_rows,), "float32"), "err2": ((n_rows,), "float32"), "l0": ((n_rows,), "int32")}


def _joined(parts: list[_Encoded]) -> Arrays:
    return {name: np.concatenate([part.scalars[name] for part in parts]) for name in parts[0].scalars}


def _write(arrays: dict[str, ShardedArray], i: int, columns: Arrays) -> None:
    for name, column in columns.items():
        arrays[name].write_shard(i, column)


class CodesCache:
    """Codes of every eligible row of an evaluation set, in its order.

    Attributes:
        sae_id, evaluation_id: what the codes were made of.
        n_rows, n: rows and latents.
        k: active latents where fixed, else None; `width` pairs are kept of each row then.
        ragged: whether the codes are CSR.
    """

    def __init__(self, source: Artefact | Draft) -> None:
        record = source.read_json(RECORD)
        self._source = source
        self.sae_id: str = record["sae_id"]
        self.evaluation_id: str = record["evaluation_id"]
        self.n_rows: int = record["n_rows"]
        self.n: int = record["n"]
        self.k: int | None = record["k"]
        self.width: int | None = record["width"]
        self.ragged: bool = record["layout"] == "ragged"
        self._indices, self._values = source.array("indices"), source.array("values")
        self._indptr = source.array("indptr").read(0, self.n_rows + 1) if self.ragged else None

    @classmethod
    def open(cls, artefact: Artefact) -> CodesCache:
        """Read a published cache."""
        return cls(artefact)

    def check(self, *, sae_id: str, evaluation_id: str, n: int, n_rows: int) -> None:
        """Raise CacheMismatch unless the cache was made of exactly these."""
        pairs = {
            "autoencoder": (self.sae_id, sae_id),
            "evaluation set": (self.evaluation_id, evaluation_id),
            "number of latents": (self.n, n),
            "number of rows": (self.n_rows, n_rows),
        }
        for what, (found, wanted) in pairs.items():
            if found != wanted:
                raise CacheMismatch(
                    f"the code cache was made for {what} {str(found)[:12]}, not {str(wanted)[:12]}; "
                    "make the codes of this autoencoder and evaluation set first"
                )

    def codes(self, start: int, stop: int, device: torch.device | str = "cpu") -> Codes:
        """The autoencoder's codes of rows `start` to `stop`."""
        if self._indptr is None:
            indices, values = self._pairs(start, stop)
            return Codes(indices[:, : self.k].to(device), values[:, : self.k].to(device))
        indptr = self._indptr[start : stop + 1]
        indices, values = self._pairs(int(indptr[0]), int(indptr[-1]))
        return Codes(indices.to(device), values.to(device), torch.from_numpy(indptr - indptr[0]).to(device))

    def candidates(self, start: int, stop: int) -> Codes:
        """The `width` largest of each row: the codes, then what would come next.

        Raises:
            EvaluationError: the cache is ragged: it holds all that is active and no candidates.
        """
        if self.ragged:
            raise EvaluationError("a recipe without a fixed k has no candidates beyond its codes")
        return Codes(*self._pairs(start, stop))

    def scalars(self, name: str) -> NDArray[Any]:
        """`x2`, `err2` or `l0` of every row [n_rows]."""
        return self._source.array(name).read(0, self.n_rows)

    def _pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        indices, values = self._indices.read(start, stop), self._values.read(start, stop)
        return torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(values)
