"""Earlier versions of what a study is about to make, as far as they are there: what can be taken over from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sae_pipeline.planning.continuation import CONTINUES, find_version
from sae_pipeline.planning.lineage import Lineage, Node
from sae_pipeline.store import Artefact, Outputs, Pointers
from sae_pipeline.store.errors import PathError
from sae_pipeline.study import identity_of

if TYPE_CHECKING:
    from sae_pipeline.activations import Earlier


def earlier_activations(lineage: Lineage, node: Node, outputs: Outputs, pointers: Pointers) -> Earlier | None:
    """The newest published version of a site's activations that shards may be taken over from, and its tokens.

    That made from the version of the tokens which the study's tokens continue, or from what that continues, and so on;
    where there is none, the one the study uses now. Whether a shard is the same is left to `take_over`.
    """
    from sae_pipeline.activations import Earlier
    from sae_pipeline.tokens import Tokens

    for artefact in _candidates(lineage, node, outputs, pointers):
        tokens = find_version(outputs, "tokens", artefact.lineage.get("inputs", {}).get("tokens", ""))
        if tokens is not None and artefact.identity != node.identity:
            return Earlier(artefact, Tokens.open(tokens))
    return None


def bytes_kept(lineage: Lineage, node: Node, outputs: Outputs, pointers: Pointers) -> int:
    """About how many bytes of a node need no room of their own: whole shards of a version that the tokens continue.

    0 for all but activations. File systems without links need the room after all.
    """
    if node.asset != "activations" or CONTINUES not in lineage["tokens"].record:
        return 0
    earlier = next(_candidates(lineage, node, outputs, pointers), None)
    if earlier is None:
        return 0
    begun_with = earlier.summary.get("micro_batch_begun_with", earlier.summary.get("micro_batch"))
    if begun_with != lineage.study.activations.micro_batch:
        return 0
    shards = int(earlier.summary["shards"])
    return earlier.n_bytes * (shards - 1) // shards


def _candidates(lineage: Lineage, node: Node, outputs: Outputs, pointers: Pointers) -> Iterator[Artefact]:
    record = lineage["tokens"].record
    while identity := record.get(CONTINUES):
        made_from = {**node.record, "inputs": {**node.record["inputs"], "tokens": identity}}
        found = find_version(outputs, node.stage, identity_of(made_from))
        if found is not None:
            yield found
        tokens = find_version(outputs, "tokens", identity)
        if tokens is None:
            break
        record = tokens.lineage
    if (where := pointers.get(node.name)) is not None:
        try:
            yield Artefact.open(outputs.root / where)
        except PathError:  # gone or damaged: nothing to take over
            return
