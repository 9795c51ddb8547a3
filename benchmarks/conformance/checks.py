"""The questions: what is asked of a package, on which scenario, and which reference the answer is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import references
from references import Arrays
from scenarios import Scenario

Part = Callable[[Scenario, Arrays], Arrays]


def whole(s: Scenario, arrays: Arrays) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Check:
    """One row of the table.

    key and title name it. function: the adapter's, from a scenario to arrays. reference: from a scenario and options
    to arrays. scenarios: the names of those it is asked on. part: of both, what this row is about. source: of the
    formula.
    """

    key: str
    title: str
    function: str
    reference: Callable[..., Arrays]
    source: str
    scenarios: tuple[str, ...] = ("plain",)
    part: Part = whole

    def answers(self, adapter: Any, sets: Any) -> Arrays:
        """What the package makes of it."""
        return self._over(sets, getattr(adapter, self.function))

    def expected(self, sets: Any, options: dict[str, Any]) -> Arrays:
        """What the paper, or the paper changed by options, makes of it."""
        return self._over(sets, lambda s: self.reference(s, **options))

    def _over(self, sets: Any, made: Callable[[Scenario], Arrays]) -> Arrays:
        found = {name: self.part(s, made(s)) for name in self.scenarios for s in [getattr(sets, name)]}
        return {
            f"{key} ({name})" if len(found) > 1 else key: v for name, each in found.items() for key, v in each.items()
        }


def unit(s: Scenario, gradient: Arrays) -> Arrays:
    """In units of the gradient by the decoder of the dead: how AuxK is normalised is a row of its own."""
    norm = np.linalg.norm(gradient["W_dec"][s.dead]) or 1.0
    return {name: gradient[name] / norm for name in ("W_enc", "b_enc", "W_dec")}


def dead_decoder(s: Scenario, gradient: Arrays) -> Arrays:
    return {"W_dec": unit(s, gradient)["W_dec"][s.dead]}


def dead_encoder(s: Scenario, gradient: Arrays) -> Arrays:
    return {name: unit(s, gradient)[name][s.dead] for name in ("W_enc", "b_enc")}


def living(s: Scenario, gradient: Arrays) -> Arrays:
    """Of those that are not dead; 0 in the paper, so what it is measured by is the gradient of the dead."""
    return {name: value[~s.dead] for name, value in unit(s, gradient).items()}


def loss(s: Scenario, gradient: Arrays) -> Arrays:
    return {"loss": gradient["loss"]}


TOPK, AUXK, MULTI = "Gao et al. 2024 §2.3", "Gao et al. 2024 §A.2 and its code", "Gao et al. 2024 §5.3.1"
BATCH, NESTED = "Bussmann et al. 2024", "Bussmann et al. 2025"
L1, APRIL = "Bricken et al. 2023", "Circuits Updates, April 2024"
GATED, JUMP = "Rajamanoharan et al. 2024a §3.2", "Rajamanoharan et al. 2024b, eqs. 11-12"

CHECKS = (
    Check("topk", "TopK: reconstruction and gradients", "topk", references.topk, TOPK),
    Check("topk_few", "TopK where fewer than k are positive", "topk", references.topk, TOPK, ("few",)),
    Check("multi_topk", "Multi-TopK: gradients of L(k) + L(4k)/8", "multi_topk", references.multi_topk, MULTI),
    Check("auxk_decoder", "AuxK: decoder of the dead", "auxk", references.auxk, AUXK, ("dying",), dead_decoder),
    Check("auxk_encoder", "AuxK: encoder of the dead", "auxk", references.auxk, AUXK, ("dying",), dead_encoder),
    Check("auxk_living", "AuxK: nothing for the living", "auxk", references.auxk, AUXK, ("dying",), living),
    Check("auxk_size", "AuxK: normalisation", "auxk", references.auxk, AUXK, ("dying", "two_dying"), loss),
    Check("batch_topk", "BatchTopK: selection and gradients", "batch_topk", references.batch_topk, BATCH),
    Check("batch_topk_threshold", "BatchTopK: threshold for inference", "batch_topk_threshold",
          references.batch_topk_threshold, BATCH),
    Check("matryoshka", "Matryoshka: gradients", "matryoshka", references.matryoshka, NESTED),
    Check("relu_l1", "ReLU + L1: gradients", "relu_l1", references.relu_l1, L1),
    Check("relu_decoder_norm", "ReLU + L1 weighted by decoder norms", "relu_decoder_norm",
          references.relu_decoder_norm, APRIL, ("free",)),
    Check("gated", "Gated: reconstruction and gradients", "gated", references.gated, GATED),
    Check("jumprelu", "JumpReLU: gradients of the error, with θ", "jumprelu", references.jumprelu, JUMP),
    Check("jumprelu_l0", "JumpReLU: gradients of L0", "jumprelu_l0", references.jumprelu_l0, JUMP),
    Check("unit_rows", "Decoder rows of unit norm", "unit_rows", references.unit_rows, TOPK, ("free",)),
    Check("tangent", "Decoder gradient tangent to them", "tangent", references.tangent, TOPK),
    Check("fvu", "NMSE (fraction of variance unexplained)", "fvu", references.fvu, "Gao et al. 2024 §2.1"),
)  # fmt: skip
