"""Corpora on the Hugging Face hub, streamed through `datasets` and pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sae_pipeline.tokens.files import CorpusError, text_of

PREFIX = "hf:"
SPLIT = "train"
_PATIENCE_S = 10.0  # the client's default waits for as long as the network keeps silent
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_commit(name: str, revision: str | None) -> str:
    """The commit that `revision` of dataset `name` stands for (default: the main branch).

    A revision that is a full commit needs no network. Raises CorpusError if the hub cannot be asked.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(_info(name, revision).sha)
    except Exception as error:  # the hub's client raises errors of several libraries without a common base
        raise _unreachable(name, error) from error


def check_reachable(name: str, commit: str) -> None:
    """Ask the hub for the dataset once: reading it repeats every failed request for half a minute.

    Raises CorpusError if the hub cannot be asked or has no such commit.
    """
    try:
        _info(name, commit)
    except Exception as error:  # as above
        raise _unreachable(name, error) from error


def _info(name: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision, timeout=_PATIENCE_S)


def read_hub(name: str, subset: str | None, commit: str, field: str) -> Iterator[tuple[str, str]]:
    """Yield (`train/<row>`, text) of the dataset's training split, streaming: only what is read is downloaded.

    Raises CorpusError if `datasets` is missing, the hub cannot be reached, or a record has no text in `field`.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CorpusError("corpora from the hub need `datasets`: pip install 'sae-pipeline[hub]'") from error

    try:
        rows = load_dataset(name, name=subset, split=SPLIT, revision=commit, streaming=True)
        for row, record in enumerate(rows):
            yield f"{SPLIT}/{row}", text_of(record, field, f"hf:{name}, row {row}")
    except CorpusError:
        raise
    except Exception as error:  # as above
        raise _unreachable(name, error) from error


def fingerprint_hub(name: str, subset: str | None, commit: str) -> dict[str, Any]:
    """Identity of a hub dataset: its name and the resolved commit."""
    return {"kind": "hub", "dataset": name, "subset": subset, "commit": commit}


def _unreachable(name: str, error: Exception) -> CorpusError:
    return CorpusError(
        f"hf:{name} cannot be read ({type(error).__name__}: {error}). Check its name, subset and revision, and the "
        "network (HF_TOKEN for gated data); without a network point `source` at local .txt, .jsonl or .parquet files"
    )
