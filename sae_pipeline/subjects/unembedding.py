"""From the residual stream straight to the logits."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from sae_pipeline.subjects.architectures import ONE_PLUS_WEIGHT, architecture_of

_TOKENS_AT_ONCE: Final = 32_768


@torch.no_grad()
def direct_logits(model: Any, model_type: str, direction_bd: Tensor) -> Tensor:
    """The direct effect of residual directions on the logits, [b, vocabulary] in float32.

        W_U (γ ⊙ d)             where the final norm is an RMSNorm
        W_U (γ ⊙ (d − mean d))  where it is a LayerNorm

    with the unembedding W_U and the gain γ of the final norm. Add t·d to the last residual stream and hold the final
    norm's scale σ (standard deviation or root mean square) fixed: the logits change by t/σ times this, before the soft
    cap that Gemma-2 puts on them. What d does by way of later blocks is not in it. (Direct path of Elhage et al. 2021.)

    Args:
        model: the causal language model.
        model_type: of its configuration.
        direction_bd: directions [b, d_model] on the model's device.
    """
    architecture = architecture_of(model_type)
    gain_d = model.get_submodule(architecture.final_norm).weight.float() + (model_type in ONE_PLUS_WEIGHT)
    direction_bd = direction_bd.float()
    if architecture.norm == "layernorm":
        direction_bd = direction_bd - direction_bd.mean(1, keepdim=True)
    rows_vd = model.get_output_embeddings().weight
    return torch.cat([(direction_bd * gain_d) @ part.float().t() for part in rows_vd.split(_TOKENS_AT_ONCE)], dim=1)
