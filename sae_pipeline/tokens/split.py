"""Which documents are held out: whole near-duplicate clusters, so that no held-out text has a twin in training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Corpus

TRAIN, HELD_OUT, EXCLUDED = "train", "held_out", "excluded"
BY_CLUSTER, BY_CARD = "near_duplicate_cluster", "embedded_card"


@dataclass(frozen=True)
class Candidates:
    """Documents to be split, one entry each: stable name, corpus, near-duplicate cluster, tokens."""

    names: Sequence[str]
    corpora: Sequence[str]
    clusters: NDArray[np.int64]
    n_tokens: NDArray[np.int64]


def order_key(name: str, seed: int) -> str:
    """Place of a document (or of the cluster whose smallest member it is) in the seeded order of holding out."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def split_documents(
    found: Candidates,
    corpora: Sequence[Corpus],
    needed: Mapping[str, float],
    *,
    seed: int,
    split_list: Mapping[str, Sequence[str]],
) -> list[str]:
    """Side of every document: "train", "held_out" or "excluded".

    `needed`: tokens to hold out per corpus. A corpus split by `embedded_card` holds out the names that `split_list`
    gives under its own; the others take whole clusters, in the order of a seeded hash of the cluster's smallest member
    name, until each corpus has what it needs. A document left over whose cluster holds a held-out one is excluded.
    """
    by_card = {corpus.name for corpus in corpora if _mode(corpus) == BY_CARD}
    held_out = {i for name in sorted(by_card) for i in _listed(found, name, split_list)}
    held_out |= _by_cluster(found, by_card, dict(needed), seed)
    tainted = {int(found.clusters[i]) for i in held_out}
    sides = []
    for i in range(len(found.names)):
        twin = int(found.clusters[i]) in tainted
        sides.append(HELD_OUT if i in held_out else EXCLUDED if twin else TRAIN)
    _require_both(sides)
    return sides


def _mode(corpus: Corpus) -> str:
    if corpus.split not in (BY_CLUSTER, BY_CARD):
        raise PipelineError(f"corpus {corpus.name}: split {corpus.split!r} is not one of {BY_CLUSTER}, {BY_CARD}")
    return corpus.split


def _listed(found: Candidates, corpus: str, split_list: Mapping[str, Sequence[str]]) -> set[int]:
    if corpus not in split_list:
        raise PipelineError(
            f"corpus {corpus}: split {BY_CARD} needs the card of an embedded subject; "
            f"use subject.id embedded/<name> or split {BY_CLUSTER}"
        )
    names = set(split_list[corpus])
    held_out = {i for i, name in enumerate(found.names) if found.corpora[i] == corpus and name in names}
    if not held_out:
        raise PipelineError(
            f"corpus {corpus} has none of the documents that the card holds out; use split {BY_CLUSTER}"
        )
    return held_out


def _by_cluster(found: Candidates, by_card: set[str], needed: dict[str, float], seed: int) -> set[int]:
    members: dict[int, list[int]] = {}
    for i, cluster in enumerate(found.clusters.tolist()):
        if found.corpora[i] not in by_card:
            members.setdefault(cluster, []).append(i)
    held_out: set[int] = set()
    for group in sorted(members.values(), key=lambda group: order_key(min(found.names[i] for i in group), seed)):
        if any(needed[found.corpora[i]] > 0 for i in group):
            held_out.update(group)
            for i in group:
                needed[found.corpora[i]] -= int(found.n_tokens[i])
    return held_out


def _require_both(sides: Sequence[str]) -> None:
    for side in (TRAIN, HELD_OUT):
        if side not in sides:
            raise PipelineError(
                f"no document is left for {side}: {len(sides)} documents; add text that does not repeat the rest"
            )
