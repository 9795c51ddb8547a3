"""The command that looks into an autoencoder: `inspect`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resources.workspace import Workspace
    from sae_pipeline.planning.lineage import Lineage, Node
    from sae_pipeline.store import Artefact


def inspect(options: argparse.Namespace) -> int:
    """Print the top latents of every token of a prompt, and what each of them writes to the logits."""
    from resources.workspace import StudyGraph
    from sae_pipeline.autoencoders import Autoencoder, inspect_prompt, render_inspection
    from sae_pipeline.subjects import load_subject, load_tokenizer

    work = StudyGraph.load().workspace
    node = _node(work.lineage, options.key, options.site)
    artefact = _made(work, node)
    subject = load_subject(work.study.subject, root=work.root)
    tokenizer = load_tokenizer(work.study.subject, root=work.root)
    sae = Autoencoder.load(artefact.path, subject.device)
    _, site, key = node.name.split("/")
    bos = work.study.tokens.bos != "none"
    found = inspect_prompt(sae, subject, tokenizer, site, options.prompt, bos=bos, top=options.top)
    print(f"{key} at {site}  ({node.identity[:12]})\n")
    print(render_inspection(found, _densities(work, f"eval_density/{site}/{key}")))
    return 0


def _node(lineage: Lineage, key: str, site: str | None) -> Node:
    """The autoencoder of that key, at that site as the study writes it or as it is resolved."""
    from sae_pipeline.planning.lineage import asset_nodes
    from sae_pipeline.store import PipelineError

    named = {node.name.split("/")[1]: node for node in asset_nodes(lineage, "autoencoder", [key])}
    nodes = {where: node for where, node in named.items() if node.name.endswith(f"/{key}")}
    if not nodes:
        example = next(iter(named.values())).name.split("/")[2]
        raise PipelineError(f"{key} is a site; name one of its autoencoders, e.g. {example} --site {key}")
    if site is None and len(nodes) > 1:
        raise PipelineError(f"there is a {key} at {', '.join(nodes)}; choose one with --site")
    wanted = next(iter(nodes)) if site is None else str(lineage.facts.sites.get(site, site))
    if wanted not in nodes:
        raise PipelineError(f"there is no {key} at {site}; there is one at {', '.join(nodes)}")
    return nodes[wanted]


def _made(work: Workspace, node: Node) -> Artefact:
    from sae_pipeline.store import PipelineError

    found: Artefact | None = work.find(node.name)
    if found is None:
        study = os.environ.get("SAE_STUDY", "demo")
        raise PipelineError(
            f"{node.name} is not made yet as study {study} now asks for it; make it: sae-pipeline run {study} "
            f"(what it waits for: sae-pipeline why {node.name} --study {study})"
        )
    return found


def _densities(work: Workspace, name: str) -> Mapping[int, float] | None:
    """Share of held-out tokens that each latent fires on; None if the study does not ask for it or it is not made."""
    from sae_pipeline.evaluation import read_metric

    found = work.find(name) if name in work.lineage.nodes else None
    if found is None:
        return None
    stats = read_metric(found).latent_stats
    return dict(zip(stats["latent"].tolist(), stats["density"].tolist(), strict=True))
