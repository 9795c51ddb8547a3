"""The file format of an autoencoder: `autoencoder.safetensors` beside `config.json`. Reading it never runs code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_pipeline.autoencoders.recipes import AutoencoderConfig, recipe_of
from sae_pipeline.autoencoders.tensor_file import safetensors_parts
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import Artefact, NewerFormat, NotPublished, PipelineError, read_json
from sae_pipeline.store.atomic import Bytes

FORMAT = "sae-pipeline autoencoder"
VERSION = 1
WEIGHTS, CONFIG = "autoencoder.safetensors", "config.json"


def to_files(
    config: AutoencoderConfig, parameters: Parameters, normaliser: Normaliser, provenance: dict[str, Any]
) -> dict[str, list[Bytes]]:
    """The content of both files by name, in parts; weights in float32."""
    named = parameters.map(lambda tensor: tensor.detach().to("cpu", torch.float32)).named()
    document = {
        "format": FORMAT,
        "version": VERSION,
        "autoencoder": asdict(config),
        "normaliser": normaliser.to_config(),
        "provenance": provenance,
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS: list[Bytes](safetensors_parts(named)), CONFIG: [text.encode()]}


def from_files(folder: Path) -> tuple[AutoencoderConfig, Parameters, Normaliser, dict[str, Any]]:
    """What `to_files` was given; PipelineError or NewerFormat naming the file and what is wrong with it.

    In a published artefact both files are compared with what was published; else there is nothing to compare with.
    """
    path = _checked(folder, CONFIG)
    if not path.is_file():
        raise PipelineError(f"{folder}: no autoencoder here ({CONFIG} is missing)")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PipelineError(f"{path}: is not the configuration of an autoencoder of this library")
    if document["version"] > VERSION:
        raise NewerFormat(path, document["version"], VERSION)
    try:
        config = AutoencoderConfig(**document["autoencoder"])
        normaliser = Normaliser.from_config(document["normaliser"])
        provenance = dict(document["provenance"])
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{path}: a field is missing or unknown: {error}") from error
    recipe_of(config.recipe)
    return config, _read_weights(_checked(folder, WEIGHTS), config), normaliser, provenance


def _checked(folder: Path, name: str) -> Path:
    try:
        return Artefact.open(folder).file(name)
    except NotPublished:
        return folder / name


def _read_weights(path: Path, config: AutoencoderConfig) -> Parameters:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PipelineError(f"{path}: cannot be read as safetensors: {error}") from error
    n, d = config.n, config.d
    expected = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_pre": (d,)}
    if recipe_of(config.recipe).encoder == "threshold":
        expected["threshold"] = (n,)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise PipelineError(f"{path}: holds {found}, its config.json asks for {expected}")
    wrong = sorted(name for name, tensor in tensors.items() if tensor.dtype != torch.float32)
    if wrong:
        raise PipelineError(f"{path}: {', '.join(wrong)} must be float32")
    return Parameters.of(tensors)
