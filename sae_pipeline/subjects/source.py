"""Finding a subject's files: the shipped models, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects.errors import SubjectError

SMALL_FILES: Final = ("*.json", "*.model", "*.txt", "*.jinja")
WEIGHT_FILES: Final = ("*.safetensors",)
_INDEX: Final = "model.safetensors.index.json"
_INCIDENTAL: Final = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Source:
    """A subject's files on this machine.

    Attributes:
        name: what the study calls it.
        folder: where its files lie.
        commit: the hub commit, or None for a local folder.
    """

    name: str
    folder: Path
    commit: str | None


def locate(config: SubjectConfig, *, root: Path, weights: bool) -> Source:
    """Find a subject's files, downloading from the hub only what is asked for.

    Args:
        config: the subject part of a study.
        root: folder that a relative local path starts from.
        weights: whether the weights are needed beside configuration and tokenizer; an untrained twin's never are.

    Raises:
        SubjectError: there is no such shipped model, folder or hub repository, or the hub cannot be reached.
    """
    if config.id.startswith("embedded/"):
        return Source(config.id, _embedded_dir(config.id.removeprefix("embedded/")), None)
    path = Path(config.id).expanduser()
    folder = path if path.is_absolute() else root / path
    if folder.is_dir():
        return Source(config.id, folder, None)
    if path.is_absolute() or config.id.startswith((".", "~")) or config.id.count("/") > 1:
        raise SubjectError(f"subject {config.id!r}: there is no folder {folder}")
    return _from_hub(config, weights=weights and config.weights is None)


def _embedded_dir(name: str) -> Path:
    # Found as package data and not by importing `sae_pipeline.embedded`, which lies floors above this room.
    models = Path(str(importlib.resources.files("sae_pipeline"))) / "embedded" / "models"
    shipped = sorted(p.parent.name for p in models.glob("*/config.json"))
    if name not in shipped:
        raise SubjectError(f"subject 'embedded/{name}' is not shipped; shipped: {', '.join(shipped) or 'none'}")
    return models / name


def _from_hub(config: SubjectConfig, *, weights: bool) -> Source:
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        folder = snapshot_download(
            config.id, revision=config.revision, token=_token(config.credentials), allow_patterns=patterns
        )
    except (OSError, ValueError) as error:  # hub errors derive from OSError (requests) or ValueError (bad ids)
        raise SubjectError(
            f"subject {config.id!r} is neither a folder nor to be had from the Hugging Face hub: {_first_line(error)}. "
            "Check the id, the network and `credentials`, or give a local folder with its files"
        ) from None
    # A snapshot's folder is named by its commit, also when it comes from the cache without a network.
    return Source(config.id, Path(folder), Path(folder).name)


def _token(credentials: str | None) -> str | None:
    if credentials is None:
        return None
    kind, _, name = credentials.partition(":")
    if kind != "env" or not name:
        raise SubjectError(f"credentials {credentials!r}: write env:NAME, naming the variable that holds the token")
    if name not in os.environ:
        raise SubjectError(f"credentials {credentials!r}: the environment variable {name} is not set")
    return os.environ[name]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_config(source: Source) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        SubjectError: it is missing, is not JSON, or names no `model_type`.
    """
    path = source.folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SubjectError(
            f"subject {source.name!r}: {source.folder} holds no config.json; "
            "name the folder that save_pretrained wrote or a download filled"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SubjectError(f"subject {source.name!r}: config.json cannot be read: {error}; download it again") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise SubjectError(
            f"subject {source.name!r}: config.json names no model_type; "
            "it must be that of a transformers causal language model"
        )
    return raw


def check_weights(source: Source) -> list[Path]:
    """Check from the safetensors headers alone that all weight files are there and whole.

    Returns:
        The weight files, sorted by name.

    Raises:
        SubjectError: a file is missing, cut short or unreadable, or the weights are in another format.
    """
    files = _weight_files(source)
    for path in files:
        _check_header(source, path)
    return files


def _weight_files(source: Source) -> list[Path]:
    index = source.folder / _INDEX
    if index.exists():
        names = _listed(source, index)
        missing = [name for name in names if not (source.folder / name).exists()]
        if missing:
            raise SubjectError(
                f"subject {source.name!r} is not complete: {len(missing)} of {len(names)} weight files are missing, "
                f"the first is {missing[0]}; download it again"
            )
        return [source.folder / name for name in names]
    files = sorted(source.folder.glob("*.safetensors"))
    if not files:
        raise SubjectError(
            f"subject {source.name!r}: {source.folder} holds no *.safetensors weights; other formats are not read, "
            "save the model again with save_pretrained"
        )
    return files


def _listed(source: Source, index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SubjectError(
            f"subject {source.name!r}: {index.name} cannot be read or lists no weight files; download it again"
        ) from None


def _check_header(source: Source, path: Path) -> None:
    """Compare the file's size with the end of its last tensor (safetensors: 8-byte length, JSON header, data)."""
    try:
        size, length, header = _header(path)
        end = max(entry["data_offsets"][1] for entry in header.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SubjectError(
            f"subject {source.name!r}: {path.name} has no readable safetensors header; download it again"
        ) from None
    if size != 8 + length + end:
        raise SubjectError(
            f"subject {source.name!r}: {path.name} has {size} bytes and should have {8 + length + end}; "
            "download it again"
        )


def _header(path: Path) -> tuple[int, int, dict[str, Any]]:
    """Size of a safetensors file, length of its header, and the header's entry of every tensor."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length)) if 0 < length <= size - 8 else {}
    return size, length, {name: entry for name, entry in header.items() if name != "__metadata__"}


def count_values(weights: list[Path]) -> int:
    """Numbers held by weight files that `check_weights` has passed."""
    entries = (entry for path in weights for entry in _header(path)[2].values())
    return sum(math.prod(entry["shape"]) for entry in entries)


def fingerprint(source: Source, config: dict[str, Any], weights: list[Path]) -> str:
    """Name a subject by content, wherever its files lie.

    Returns:
        The hub commit, or the sha256 over what `config.json` says and the bytes of the weight files.
    """
    if source.commit is not None:
        return source.commit
    digest = hashlib.sha256(determining(config).encode())
    for part in _digests(weights):
        digest.update(part.encode())
    return digest.hexdigest()


def determining(config: dict[str, Any]) -> str:
    """What `config.json` says of the model, as JSON: nothing of where it came from or how it was saved."""
    return json.dumps({key: value for key, value in config.items() if key not in _INCIDENTAL}, sort_keys=True)


def _digests(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        stat = path.stat()
        yield _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file; size and time are part of the key so that gigabytes are hashed once a process."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise SubjectError(f"{path} cannot be read ({error.strerror}); mend its permissions or copy it again") from None
