"""The model family: recipes, initial weights, encoding and decoding, files."""

from sae_pipeline.autoencoders.autoencoder import Autoencoder
from sae_pipeline.autoencoders.codes import Codes
from sae_pipeline.autoencoders.initialise import config_of, initialise
from sae_pipeline.autoencoders.recipes import RECIPES, AutoencoderConfig, Recipe, recipe_of

__all__ = [
    "RECIPES",
    "Autoencoder",
    "AutoencoderConfig",
    "Codes",
    "Recipe",
    "config_of",
    "initialise",
    "recipe_of",
]
