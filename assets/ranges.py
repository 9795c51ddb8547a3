"""From nodes to runs: which partitions one Dagster run covers, and the tags that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from assets.partitions import dynamic_set, partition_key
from assets.publishing import asset_key
from resources import StudyGraph

if TYPE_CHECKING:
    from sae_pipeline.planning.lineage import Node

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Request:
    """One run: these nodes, and no others."""

    nodes: tuple[Node, ...]
    assets: tuple[str, ...]
    tags: dict[str, str]

    def selection(self, graph: StudyGraph) -> list[dg.AssetKey]:
        """Keys of the assets of this run."""
        return [asset_key(graph, asset) for asset in self.assets]

    def __str__(self) -> str:
        counts = {asset: sum(node.asset == asset for node in self.nodes) for asset in self.assets}
        return ", ".join(f"{asset} × {count}" if count > 1 else asset for asset, count in counts.items())


def requests_for(instance: dg.DagsterInstance, graph: StudyGraph, nodes: Sequence[Node]) -> list[Request]:
    """The runs that make exactly the given nodes.

    What is partitioned by site alone shares runs over sites; what is partitioned by autoencoder gets runs per site.
    A run covers a stretch of partitions that follow one another in Dagster's order and need the same assets.
    """
    order = {site: number for number, site in enumerate(graph.sites)}
    autoencoders = list(instance.get_dynamic_partitions(dynamic_set(graph.study.study)))
    order |= {key: number for number, key in enumerate(autoencoders)}
    at: dict[str, list[Node]] = {}
    for node in nodes:
        at.setdefault(node.name.partition("/")[2], []).append(node)
    whole = at.pop("", [])
    groups = _grouped(at)
    by_site = [_request(stretch, at) for site, paths in groups if not site for stretch in _stretches(paths, order)]
    by_autoencoder = [_request(stretch, at) for site, paths in groups if site for stretch in _stretches(paths, order)]
    if whole:
        # Unpartitioned nodes share a run with sites: what sites are made from with the first, what is made from them
        # with the last.
        number = 0 if nodes[0] in whole else -1
        other = by_site.pop(number) if by_site else Request((), (), {})
        assets = tuple(node.asset for node in whole)
        joined = Request((*whole, *other.nodes), (*assets, *other.assets), other.tags)
        by_site.insert(0 if number == 0 else len(by_site), joined)
    return [*by_site, *by_autoencoder]


def _grouped(at: Mapping[str, Sequence[Node]]) -> list[tuple[str, list[str]]]:
    """Paths that may share a run: those of one site (of all sites, for sites themselves) that need the same assets."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, nodes in at.items():
        site = path.partition("/")[0] if "/" in path else ""
        groups.setdefault((site, tuple(node.asset for node in nodes)), []).append(path)
    return [(site, paths) for (site, _), paths in groups.items()]


def _stretches(paths: Iterable[str], order: Mapping[str, int]) -> list[list[str]]:
    """Paths cut where one does not follow the other in Dagster's order of partitions."""
    place = {path: order[path.rpartition("/")[2]] for path in paths}
    stretches: list[list[str]] = []
    for path in sorted(place, key=lambda path: place[path]):
        if stretches and place[stretches[-1][-1]] + 1 == place[path]:
            stretches[-1].append(path)
        else:
            stretches.append([path])
    return stretches


def _request(stretch: list[str], at: Mapping[str, Sequence[Node]]) -> Request:
    nodes = tuple(node for path in stretch for node in at[path])
    assets = tuple(node.asset for node in at[stretch[0]])
    return Request(nodes, assets, {RANGE_START: partition_key(stretch[0]), RANGE_END: partition_key(stretch[-1])})
