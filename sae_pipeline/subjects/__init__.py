"""Subjects: the language models under study. Load one, run it up to a site, resume it from a site.

The names below are imported when first used, so that a caller who only reads a configuration file (`source`) does not
load torch: the Dagster code location is such a caller.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_pipeline.subjects.architectures import ARCHITECTURES, Architecture, Place, architecture_of
    from sae_pipeline.subjects.card import SubjectCard, check_complete, describe
    from sae_pipeline.subjects.errors import SubjectError
    from sae_pipeline.subjects.prefix import Prefix
    from sae_pipeline.subjects.subject import Subject, load_subject, pick_device
    from sae_pipeline.subjects.tokenizer import SubjectTokenizer, load_tokenizer

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Place",
    "Prefix",
    "Subject",
    "SubjectCard",
    "SubjectError",
    "SubjectTokenizer",
    "architecture_of",
    "check_complete",
    "describe",
    "load_subject",
    "load_tokenizer",
    "pick_device",
]

_HOME = {
    **dict.fromkeys(("ARCHITECTURES", "Architecture", "Place", "architecture_of"), "architectures"),
    **dict.fromkeys(("SubjectCard", "check_complete", "describe"), "card"),
    "SubjectError": "errors",
    "Prefix": "prefix",
    **dict.fromkeys(("Subject", "load_subject", "pick_device"), "subject"),
    **dict.fromkeys(("SubjectTokenizer", "load_tokenizer"), "tokenizer"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
