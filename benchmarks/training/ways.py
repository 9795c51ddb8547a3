"""What is measured: the forms, and the recipes of every package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Form:
    """What is trained: n latents, k active, on rows of width d, `batch` at a time."""

    d: int
    n: int
    k: int
    batch: int = 2048

    def __str__(self) -> str:
        return f"d={self.d} n={self.n} k={self.k} B={self.batch}"


FORMS = (Form(256, 4096, 32), Form(768, 16384, 32), Form(768, 32768, 64))
AUXK_FORM = FORMS[1]


@dataclass(frozen=True)
class Way:
    """A recipe of an adapter in training/, and the package of PEERS that it belongs to; None: this checkout.

    `steps`: that it is told it will make, where these are not those of all ways.
    """

    adapter: str
    package: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None


PEER_WAYS = {
    "sae-lens": Way("peer_sae_lens", "sae-lens"),
    "eai-sparsify, Adam": Way("peer_sparsify", "eai-sparsify", {"optimizer": "adam"}),
    "eai-sparsify, signum": Way("peer_sparsify", "eai-sparsify", {"optimizer": "signum"}),
    "dictionary-learning": Way("peer_dictionary_learning", "dictionary-learning"),
}
STOCK, COMPILED = "ours", "ours, compiled top-k"
OUR_WAYS = {STOCK: Way("ours", options={"compiled": False}), COMPILED: Way("ours", options={"compiled": True})}
PRODUCTS = {
    "bf16 product": Way("products", options={"dtype": "bfloat16"}),
    "fp32 product": Way("products", options={"dtype": "float32"}),
}
AUXK_WAYS = {
    "ours, no AuxK": Way("ours", options={"auxk": "off"}),
    "ours, 1 % dead": Way("ours", options={"dead": 0.01}),
}
QUALITY_FORM = Form(256, 4096, 32, batch=1024)


def quality_ways(steps: int) -> dict[str, Way]:
    """Ours: the paper's law, and the same Adam at a higher rate that falls linearly to 0 over a shorter run."""
    return {"ours, the paper's law": Way("ours")}
