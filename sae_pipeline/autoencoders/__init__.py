"""The model family: recipes, initial weights, encoding and decoding, files, and what to do with a trained one."""

from sae_pipeline.autoencoders.autoencoder import Autoencoder
from sae_pipeline.autoencoders.codes import Codes
from sae_pipeline.autoencoders.initialise import config_of, initialise, settings_of
from sae_pipeline.autoencoders.inspection import Inspection, inspect_prompt
from sae_pipeline.autoencoders.inspection_table import render_inspection
from sae_pipeline.autoencoders.recipes import RECIPES, AutoencoderConfig, Recipe, Settings, check_options, recipe_of
from sae_pipeline.autoencoders.tensor_file import safetensors_parts

__all__ = [
    "RECIPES",
    "Autoencoder",
    "AutoencoderConfig",
    "Codes",
    "Inspection",
    "Recipe",
    "Settings",
    "check_options",
    "config_of",
    "initialise",
    "inspect_prompt",
    "recipe_of",
    "render_inspection",
    "safetensors_parts",
    "settings_of",
]
