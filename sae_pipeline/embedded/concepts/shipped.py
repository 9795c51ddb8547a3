"""Documents on the two sides of a shipped model's split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sae_pipeline.store import PipelineError, read_json
from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects.source import locate
from sae_pipeline.tokens.documents import Document


def by_card(
    documents: Iterable[Document], subject: SubjectConfig, *, root: Path
) -> tuple[list[Document], list[Document]]:
    """Divide documents into those that a shipped model was trained on and those held out from it.

    A document that the model's card does not name, e.g. one of another Python version, is on neither side.

    Args:
        documents: with the names that the card uses: those of `tokens.stdlib_documents`.
        subject: the model, `embedded/<name>`, or a folder with the same files.
        root: folder that a relative local path starts from.

    Raises:
        PipelineError: the model has no card that lists documents.
    """
    path = locate(subject, root=root, weights=False).folder / "card.json"
    card = read_json(path) if path.is_file() else {}
    sides = [frozenset(card.get(side) or ()) for side in ("train", "held_out")]
    if not all(sides):
        raise PipelineError(
            f"subject {subject.id!r} ships no card.json that lists its `train` and `held_out` documents; "
            "take an embedded/<name> subject"
        )
    found = list(documents)
    train, held_out = ([document for document in found if document.id in names] for names in sides)
    return train, held_out
