"""Published activations made from given rows, and datasets over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.activations import Moments
from sae_pipeline.dataset import Dataset, build_dataset
from sae_pipeline.store import Artefact, Draft


def residual_rows(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows like a residual stream: correlated, off centre, a loud channel, log-normal norms."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) / d**0.5 + torch.randn(d, generator=g)
    x[:, 1] += 30
    return x * torch.exp(0.5 * torch.randn(n, 1, generator=g))


def publish_activations(path: Path, x_rd: Tensor, shard_rows: int, dtype: str = "float32") -> Artefact:
    stored = x_rd.to(getattr(torch, dtype))
    raw = stored.view(torch.uint16).numpy() if dtype == "bfloat16" else stored.numpy()
    with Draft.open(path, stage="activations", key="code.1.resid_post", identity="a" * 64, lineage={}) as draft:
        acts = draft.array("acts", shape=tuple(x_rd.shape), dtype=dtype, shard_rows=shard_rows)
        for i in range(acts.n_shards):
            acts.write_shard(i, raw[acts.rows(i)], {"moments": Moments.of(stored[acts.rows(i)]).to_json()})
        return draft.publish({})


def contexts_of(n_rows: int, length: int, n_documents: int) -> dict[str, Any]:
    """Contexts of `length` rows (the last shorter) in permuted order, each of one of `n_documents`."""
    offsets = np.append(np.arange(0, n_rows, length), n_rows)
    documents = np.sort(np.random.default_rng(0).integers(0, n_documents, len(offsets) - 1))
    return {"row_offsets": offsets, "document_of_context": np.random.default_rng(1).permutation(documents)}


def publish_dataset(path: Path, activations: Artefact, *, normaliser: str = "paper", **options: Any) -> Dataset:
    n_rows = activations.array("acts").n_rows
    with Draft.open(path, stage="dataset", key="code.1.resid_post", identity="d" * 64, lineage={}) as draft:
        options = {"seed": 5, **contexts_of(n_rows, 8, 9), **options}
        summary = build_dataset(draft, activations, normaliser=normaliser, **options)
        return Dataset.open(draft.publish(summary), activations)
