"""Where the sites lie in each Hugging Face architecture: small tables of module paths (documented in docs/sites.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sae_pipeline.subjects.errors import SubjectError

BLOCK: Final = ""
"""Module path of the block itself."""

ONE_PLUS_WEIGHT: Final = ("gemma", "gemma2", "gemma3_text")
"""Values of `model_type` whose norms multiply by 1 + weight."""


@dataclass(frozen=True)
class Place:
    """One tensor inside a block: the first input or the output of the module at `module` (a path inside the block)."""

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Architecture:
    """One family of models whose blocks are laid out alike.

    Attributes:
        name: for people.
        model_types: the values of `model_type` in `config.json` that belong here.
        blocks: path of the list of blocks from the causal language model.
        attention: path of the attention module inside a block; it returns a tuple whose first item is added to the
            residual stream, after `attn_out`'s norm where the family has one.
        norm: what normalises the residual stream, `layernorm` or `rmsnorm`.
        final_norm: path of the norm before the unembedding, from the causal language model.
        places: the tensor of every site, by the site's `where`.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    attention: str
    norm: Literal["layernorm", "rmsnorm"]
    final_norm: str
    places: Mapping[str, Place]


def _places(*, mid: Place, attn_z: str, attn_out: str, mlp_mid: str, mlp_out: str) -> dict[str, Place]:
    return {
        "resid_pre": Place(BLOCK, "input"),
        "resid_mid": mid,
        "resid_post": Place(BLOCK, "output"),
        "attn_z": Place(attn_z, "input"),
        "attn_out": Place(attn_out, "output"),
        "mlp_out": Place(mlp_out, "output"),
        "mlp_mid": Place(mlp_mid, "input"),
    }


ARCHITECTURES: Final = (
    Architecture(
        name="GPT-2",
        model_types=("gpt2",),
        blocks="transformer.h",
        attention="attn",
        norm="layernorm",
        final_norm="transformer.ln_f",
        places=_places(
            mid=Place("ln_2", "input"),
            attn_z="attn.c_proj",
            attn_out="attn.c_proj",
            mlp_mid="mlp.c_proj",
            mlp_out="mlp",
        ),
    ),
    Architecture(
        name="GPT-NeoX",
        model_types=("gpt_neox",),
        blocks="gpt_neox.layers",
        attention="attention",
        norm="layernorm",
        final_norm="gpt_neox.final_layer_norm",
        places=_places(
            mid=Place("post_attention_layernorm", "input"),
            attn_z="attention.dense",
            attn_out="attention.dense",
            mlp_mid="mlp.dense_4h_to_h",
            mlp_out="mlp",
        ),
    ),
    Architecture(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3"),
        blocks="model.layers",
        attention="self_attn",
        norm="rmsnorm",
        final_norm="model.norm",
        places=_places(
            mid=Place("post_attention_layernorm", "input"),
            attn_z="self_attn.o_proj",
            attn_out="self_attn.o_proj",
            mlp_mid="mlp.down_proj",
            mlp_out="mlp",
        ),
    ),
    Architecture(
        name="Gemma-2",
        model_types=("gemma2", "gemma3_text"),
        blocks="model.layers",
        attention="self_attn",
        norm="rmsnorm",
        final_norm="model.norm",
        places=_places(
            mid=Place("pre_feedforward_layernorm", "input"),
            attn_z="self_attn.o_proj",
            attn_out="post_attention_layernorm",
            mlp_mid="mlp.down_proj",
            mlp_out="post_feedforward_layernorm",
        ),
    ),
    Architecture(
        name="OLMo-2",
        model_types=("olmo2", "olmo3"),
        blocks="model.layers",
        attention="self_attn",
        norm="rmsnorm",
        final_norm="model.norm",
        places=_places(
            mid=Place("mlp", "input"),
            attn_z="self_attn.o_proj",
            attn_out="post_attention_layernorm",
            mlp_mid="mlp.down_proj",
            mlp_out="post_feedforward_layernorm",
        ),
    ),
)


def architecture_of(model_type: str) -> Architecture:
    """Find the family of a `model_type` from `config.json`.

    Raises:
        SubjectError: no family here has that type; the message lists those that are known.
    """
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(sorted(t for a in ARCHITECTURES for t in a.model_types))
    raise SubjectError(
        f"subjects of model_type {model_type!r} are not supported; known: {known}. A new family is one table in "
        "sae_pipeline/subjects/architectures.py (see docs/sites.md)"
    )


def wheres_of(architecture: Architecture, config: Any) -> tuple[str, ...]:
    """Name the sites a model has. With a parallel residual (GPT-NeoX) attention and MLP read the same input: no middle.

    Args:
        architecture: the model's family.
        config: its Hugging Face config.
    """
    parallel = bool(getattr(config, "use_parallel_residual", False))
    return tuple(where for where in architecture.places if not (parallel and where == "resid_mid"))
