"""Checkpoints: one safetensors file per member, whole or absent; it holds all that the next step depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_pipeline.autoencoders import safetensors_parts
from sae_pipeline.store import Draft, NewerFormat, PipelineError

NAME = "checkpoint.safetensors"
VERSION = 1


def write(draft: Draft, tensors: dict[str, Tensor], record: dict[str, Any], name: str = NAME) -> None:
    """Replace the draft's checkpoint (or a copy by another name); `record` is JSON and travels in the file's header."""
    draft.write_bytes(
        name, *safetensors_parts(tensors, {"version": str(VERSION), "record": json.dumps(record, sort_keys=True)})
    )


def check(path: Path) -> None:
    """Raise PipelineError if the checkpoint at `path` cannot be read, NewerFormat if it is of a later version."""
    try:
        with safe_open(path, framework="pt") as file:
            found = int(file.metadata()["version"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); delete it to start over") from error
    if found > VERSION:
        raise NewerFormat(path, found, VERSION)


def read(draft: Draft, into: dict[str, Tensor]) -> dict[str, Any]:
    """Copy the checkpoint's tensors into those given (same names and shapes) and return its record.

    Raises PipelineError, naming the file, if it does not fit or cannot be read; NewerFormat for a later version.
    """
    path: Path = draft.file(NAME)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            if int(header["version"]) > VERSION:
                raise NewerFormat(path, int(header["version"]), VERSION)
            if set(file.keys()) != set(into):
                raise PipelineError(f"{path}: holds other tensors than this run; delete it to start over")
            for name, tensor in into.items():
                found = file.get_tensor(name)
                if found.shape != tensor.shape or found.dtype != tensor.dtype:
                    raise PipelineError(f"{path}: {name} has another shape or type; delete the file to start over")
                tensor.copy_(found)
    except (OSError, SafetensorError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); delete it to start over") from error
    record: dict[str, Any] = json.loads(header["record"])
    return record
