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

    `task`: fields of its Task that are not those of all ways.
    """

    adapter: str
    package: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, int] = field(default_factory=dict)


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
    "ours, no AuxK": Way("ours", options={"spec": {"auxk_k": None}}),
    "ours, 1 % dead": Way("ours", options={"dead": 0.01}),
}
QUALITY_FORM = Form(256, 4096, 32, batch=1024)


def quality_ways(tokens: int) -> dict[str, Way]:
    """Ours, where peers have so many tokens: the paper's law for as many, and a fast recipe for 40 % of them.

    The fast one is made of ordinary fields: Adam at forty times the law's rate with little momentum, after a short
    warm-up a linear decay to 0 over all of the run, and half the batch. Rate, momentum and batch were chosen on rows
    of this kind; with the usual momentum of 0.9 it takes half as many tokens again, and with none it diverges.
    """
    steps = round(0.4 * tokens / 512)
    fast = {
        "lr": 40 * 2e-4 * (QUALITY_FORM.n / 2**14) ** -0.5,
        "adam_betas": (0.5, 0.99),
        "warmup_steps": steps // 10,
        "decay_last": 1.0,
    }
    return {
        "ours, the paper's law": Way("ours"),
        "ours, fast": Way("ours", options={"spec": fast}, task={"batch": 512, "steps": steps}),
    }
