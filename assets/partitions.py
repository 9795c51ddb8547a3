"""Partitions of a study: its sites (static) and, at each site, its autoencoders (dynamic)."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from resources import StudyGraph


def dynamic_set(study: str) -> str:
    """Name of the dynamic partition set that holds a study's autoencoder keys."""
    return f"autoencoders/{study}"


def site_partitions(graph: StudyGraph) -> dg.StaticPartitionsDefinition:
    """One partition per site."""
    return dg.StaticPartitionsDefinition(list(graph.sites))


def member_partitions(graph: StudyGraph) -> dg.MultiPartitionsDefinition:
    """Site × autoencoder. Cells outside the study's grids do not exist; assets skip them by name."""
    autoencoders = dg.DynamicPartitionsDefinition(name=dynamic_set(graph.study.study))
    return dg.MultiPartitionsDefinition({"site": site_partitions(graph), "ae": autoencoders})


def node_path(key: str) -> str:
    """The path of a partition in the lineage: `<site>` or `<site>/<autoencoder>`."""
    if isinstance(key, dg.MultiPartitionKey):
        parts = key.keys_by_dimension
        return f"{parts['site']}/{parts['ae']}"
    return key


def partition_key(path: str) -> str:
    """The partition of a lineage path; the inverse of `node_path`."""
    site, _, autoencoder = path.partition("/")
    return dg.MultiPartitionKey({"site": site, "ae": autoencoder}) if autoencoder else site


def sync_autoencoders(instance: dg.DagsterInstance, study: str, keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Make the dynamic set equal to the study's keys; returns what was added and what was removed."""
    wanted, name = list(keys), dynamic_set(study)
    present = list(instance.get_dynamic_partitions(name))
    added = [key for key in wanted if key not in present]
    removed = [key for key in present if key not in wanted]
    if added:
        instance.add_dynamic_partitions(name, added)
    for key in removed:
        instance.delete_dynamic_partition(name, key)
    return added, removed
