"""From documents of Python source to a probe set whose labels a parser computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.embedded.concepts.agreement import Agreement
from sae_pipeline.embedded.concepts.drawing import Drawn, OffsetTokenizer, draw, layout_for
from sae_pipeline.embedded.concepts.labels import anchors, token_labels
from sae_pipeline.embedded.concepts.probe_set import SPLITS, TEST, TRAIN, Dropped, ProbeSet, Task
from sae_pipeline.embedded.concepts.sampling import Sampling
from sae_pipeline.embedded.concepts.spans import CATALOGUE, UnparsableSource, concept_spans
from sae_pipeline.store import PipelineError, Progress, silent
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.split import order_key


def build_probe_set(
    train: Iterable[Document],
    test: Iterable[Document],
    tokenizer: OffsetTokenizer,
    sampling: Sampling,
    *,
    progress: Progress = silent,
) -> ProbeSet:
    """Draw balanced rows of every concept from two sets of documents.

    Each document gives a task as many rows with the label as without. The result does not depend on the order of the
    documents. Documents that the running Python does not parse are skipped, and named in the result.

    Args:
        train: documents that probes may be fitted on.
        test: documents that they are tested on; none of `train`.
        tokenizer: that of the subject.
        sampling: what to take.
        progress: told after each document.

    Raises:
        PipelineError: a document is on both sides, or no task is left.
    """
    sides = {
        TRAIN: _first(train, sampling.train_documents, sampling.seed),
        TEST: _first(test, sampling.test_documents, sampling.seed),
    }
    _check_disjoint(sides[TRAIN], sides[TEST])
    layout, agreement = layout_for(tokenizer, sampling.context), Agreement(len(CATALOGUE))
    drawn, skipped = list[Drawn](), list[str]()
    work = [(split, document) for split in SPLITS for document in sides[split]]
    for done, (split, document) in enumerate(work, start=1):
        try:
            spans = concept_spans(document.text)
        except UnparsableSource:
            skipped.append(document.id)
        else:
            ids, offsets = tokenizer.encode_with_offsets(document.text)
            labels_kt = token_labels(spans, anchors(document.text, offsets))
            agreement.add(labels_kt)
            drawn.append(draw(document.id, split, ids, labels_kt, layout, sampling))
        progress.update(done, len(work), "documents")
    kept, dropped = _keep(drawn, agreement.phi(), sampling)
    return _assemble(drawn, kept, dropped, skipped)


def _first(documents: Iterable[Document], limit: int, seed: int) -> list[Document]:
    """The first documents in the seeded order, sorted by name."""
    chosen = sorted(documents, key=lambda document: order_key(document.id, seed))[:limit]
    return sorted(chosen, key=lambda document: document.id)


def _check_disjoint(train: Sequence[Document], test: Sequence[Document]) -> None:
    shared = {document.id for document in train} & {document.id for document in test}
    if shared:
        raise PipelineError(f"{min(shared)} is a training and a test document; leave it on one side")


def _keep(drawn: Sequence[Drawn], phi_kk: NDArray[np.float64], sampling: Sampling) -> tuple[list[int], list[Dropped]]:
    """Concepts that become tasks, and why the others do not."""
    files = {split: np.zeros(len(CATALOGUE), np.int64) for split in SPLITS}
    for item in drawn:
        files[item.split][np.unique(item.concept_r)] += 1
    kept, dropped = list[int](), list[Dropped]()
    for k, concept in enumerate(CATALOGUE):
        found = {split: int(counts[k]) for split, counts in files.items()}
        twin = next((j for j in kept if abs(phi_kk[j, k]) > sampling.max_agreement), None)
        if min(found.values()) < sampling.min_documents:
            counts = " and ".join(f"{n} {split}" for split, n in found.items())
            dropped.append(Dropped(concept.name, f"rows in {counts} files; {sampling.min_documents} each are needed"))
        elif twin is not None:
            reason = f"agrees with {CATALOGUE[twin].name}: φ = {phi_kk[twin, k]:.2f}"
            dropped.append(Dropped(concept.name, reason))
        else:
            kept.append(k)
    if not kept:
        raise PipelineError(
            f"no concept has rows in {sampling.min_documents} documents of each split; give more documents, or lower "
            "min_documents"
        )
    return kept, dropped


def _assemble(
    drawn: Sequence[Drawn], kept: Sequence[int], dropped: Sequence[Dropped], skipped: Sequence[str]
) -> ProbeSet:
    """Join what the documents gave, without the rows of dropped concepts and contexts that no row is left in."""
    before_d = np.cumsum([0, *(item.length_c.size for item in drawn)])
    concept_r = np.concatenate([item.concept_r for item in drawn])
    context_r = np.concatenate([item.context_r + before for item, before in zip(drawn, before_d, strict=False)])
    position_r = np.concatenate([item.position_r for item in drawn])
    label_r = np.concatenate([item.label_r for item in drawn])
    test_r = np.repeat([item.split == TEST for item in drawn], [item.concept_r.size for item in drawn])
    order = np.lexsort((position_r, context_r, test_r, concept_r))
    order = order[np.isin(concept_r[order], kept)]
    used, new_context_r = np.unique(context_r[order], return_inverse=True)
    return ProbeSet(
        ids_cl=np.concatenate([item.ids_cl for item in drawn])[used],
        length_c=np.concatenate([item.length_c for item in drawn])[used],
        document_c=np.repeat(np.arange(len(drawn)), np.diff(before_d))[used],
        documents=tuple(item.name for item in drawn),
        tasks=tuple(Task(CATALOGUE[k].name, CATALOGUE[k].description, CATALOGUE[k].long_range) for k in kept),
        task_r=np.searchsorted(kept, concept_r[order]),
        context_r=new_context_r,
        position_r=position_r[order],
        label_r=label_r[order],
        test_r=test_r[order],
        dropped=tuple(dropped),
        skipped=tuple(skipped),
    )
