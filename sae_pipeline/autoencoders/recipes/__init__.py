"""The recipes by name."""

from collections.abc import Mapping

from sae_pipeline.autoencoders.recipes import batch_topk, finetune, relu, thresholds, topk
from sae_pipeline.autoencoders.recipes.recipe import AutoencoderConfig, Recipe, Settings, check_k, check_prefixes
from sae_pipeline.store import PipelineError

RECIPES: dict[str, Recipe] = topk.RECIPES | relu.RECIPES | thresholds.RECIPES | batch_topk.RECIPES | finetune.RECIPES


def recipe_of(name: str) -> Recipe:
    """The recipe of that name; PipelineError naming those there are."""
    if name not in RECIPES:
        raise PipelineError(f"recipe {name!r} is unknown; use one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def check_options(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """The recipe's options, its defaults where none is given; PipelineError for one that it does not have."""
    known = recipe_of(name).options
    for option in given:
        if option not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise PipelineError(f"recipe {name!r} has no option {option!r}; it has: {listed}")
    return {**known, **given}


__all__ = [
    "RECIPES",
    "AutoencoderConfig",
    "Recipe",
    "Settings",
    "check_k",
    "check_options",
    "check_prefixes",
    "recipe_of",
]
