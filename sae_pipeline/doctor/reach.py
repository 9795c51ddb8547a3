"""What a study needs from the Hugging Face hub, and whether it can be had."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sae_pipeline.doctor.check import Check
from sae_pipeline.study import Study
from sae_pipeline.tokens.hub import PREFIX

_WAIT_S = 5.0


def hub(study: Study, root: Path) -> Iterator[Check]:
    """Whether the hub can be reached, for a study that needs it; nothing for one that does not.

    Args:
        study: the study.
        root: folder that relative paths of the study start from.
    """
    corpora = [corpus.source for corpus in study.corpora if corpus.source.startswith(PREFIX)]
    subject = study.subject.id if _on_hub(study.subject.id, root) else None
    if corpora and importlib.util.find_spec("datasets") is None:
        yield Check("hub", "fail", f"{corpora[0]} needs `datasets`", "pip install 'sae-pipeline[hub]'")
    if not corpora and subject is None:
        return
    needed = f"study {study.study} needs {', '.join([*([subject] if subject else []), *corpora])}"
    problem = _unreachable()
    if problem is None:
        yield Check("hub", "ok", f"reachable; {needed}")
    elif not corpora and subject is not None and _in_cache(subject, study.subject.revision):
        yield Check("hub", "warn", f"{problem}; {needed}, which is in the cache", "a new revision would not be seen")
    else:
        advice = "see to the network or a proxy (HF_ENDPOINT names a mirror), or name local folders in the study"
        yield Check("hub", "fail", f"{problem}; {needed}", advice)


def _on_hub(subject: str, root: Path) -> bool:
    """Whether `sae_pipeline.subjects.source.locate` would ask the hub for it."""
    path = Path(subject).expanduser()
    local = subject.startswith(("embedded/", ".", "~")) or path.is_absolute() or (root / path).is_dir()
    return not local and subject.count("/") <= 1


def _unreachable() -> str | None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE forbids asking the hub"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_WAIT_S):
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return f"{endpoint} cannot be reached ({error})"


def _in_cache(subject: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(subject, "config.json", revision=revision), str)
