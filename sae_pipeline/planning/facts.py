"""What a study's identities need from outside the study: the subject's sizes and the contents of the corpora."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_pipeline.store import PipelineError, read_json
from sae_pipeline.study import (
    EMBEDDED_TASKS,
    PROBES,
    Corpus,
    Site,
    Study,
    expand,
    identity_of,
    probe_tasks,
    resolve_site,
)


@dataclass(frozen=True)
class Facts:
    """Facts about a study's inputs, gathered once per process.

    Attributes:
        subject: fingerprint of weights and configuration.
        tokenizer: fingerprint of the tokenizer.
        norm: `layernorm` or `rmsnorm`.
        n_layers, d_model, vocab_size, n_params, max_positions: sizes of the subject.
        widths: values per token at each site.
        sites: resolved site of each site key as the study writes it.
        corpora: content fingerprint of each corpus by name.
        split_list: held-out document names of each corpus that ships one, by corpus name.
        probe_tasks: content of the probe tasks, where the study asks for them.
        files: SHA-256 of every file of the corpora that are local files, by corpus and file.
    """

    subject: str
    tokenizer: str
    norm: str
    n_layers: int
    d_model: int
    vocab_size: int
    n_params: int
    max_positions: int
    widths: Mapping[Site, int]
    sites: Mapping[str, Site]
    corpora: Mapping[str, Mapping[str, Any]]
    split_list: Mapping[str, list[str]]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    probe_tasks: Mapping[str, Any] | None = None


def count_layers(study: Study, root: Path) -> int:
    """Number of blocks of the subject, read from its configuration file alone."""
    from sae_pipeline.subjects.source import locate, read_config

    if study.subject.shape is not None:
        return study.subject.shape.n_layers
    raw = read_config(locate(study.subject, root=root, weights=False))
    n_layers = raw.get("n_layer") or raw.get("num_hidden_layers")
    if not isinstance(n_layers, int):
        raise PipelineError(
            f"subject {study.subject.id!r}: config.json gives no number of layers (n_layer or num_hidden_layers), "
            "so a site cannot be a fraction of the depth; write its layer as a number"
        )
    return n_layers


def resolve_sites(study: Study, root: Path) -> dict[str, Site]:
    """Resolve every site of the study, e.g. `code.3of4.resid_post` to layer 2 of 4, without loading torch.

    Raises:
        PipelineError: a site lies outside the model, or two name the same place.
    """
    fractions = any("of" in text.rsplit(".", 2)[1] for text in study.sites)
    n_layers = count_layers(study, root) if fractions else sys.maxsize
    try:
        sites = {text: resolve_site(text, n_layers) for text in study.sites}
    except ValueError as error:
        raise PipelineError(str(error)) from None
    if len(set(sites.values())) < len(sites):
        raise PipelineError(f"sites: {', '.join(study.sites)} name one place twice; take one out")
    return sites


def gather_facts(study: Study, root: Path) -> Facts:
    """Look at the subject and the corpora of a study.

    Args:
        study: the study.
        root: folder that relative paths of the study start from.

    Raises:
        PipelineError: the subject or a corpus cannot be reached or used, the contexts do not fit the subject, or
            settings of the study contradict each other.
    """
    from sae_pipeline.planning.consistency import refuse_contradictions
    from sae_pipeline.subjects import describe
    from sae_pipeline.tokens.corpora import fingerprint_and_files

    card = describe(study.subject, root=root)
    if study.tokens.context > card.max_positions:
        raise PipelineError(
            f"tokens.context = {study.tokens.context} is longer than the {card.max_positions} positions "
            f"of {study.subject.id}; shorten it"
        )
    sites = resolve_sites(study, root)
    widths = {site: card.width(site) for site in sites.values()}
    refuse_contradictions(study, widths, sites)
    content = {corpus.name: fingerprint_and_files(corpus, root=root) for corpus in study.corpora}
    return Facts(
        subject=card.fingerprint,
        tokenizer=card.tokenizer_fingerprint,
        norm=card.norm,
        n_layers=card.n_layers,
        d_model=card.d_model,
        vocab_size=card.vocab_size,
        n_params=card.n_params,
        max_positions=card.max_positions,
        widths=widths,
        sites=sites,
        corpora={name: found for name, (found, _) in content.items()},
        split_list=_split_lists(study, root),
        files={name: files for name, (_, files) in content.items() if files},
        probe_tasks=_probe_tasks(study, root, {name: found for name, (found, _) in content.items()}),
    )


def gather_or_declare(study: Study, root: Path) -> tuple[Facts, bool]:
    """Facts for a plan: looked up, or, where subject or corpus cannot be reached, the sizes the study declares.

    Returns:
        The facts, and whether they were only declared.
    """
    try:
        return gather_facts(study, root), False
    except PipelineError:
        if study.subject.shape is None:
            raise
        return declared_facts(study, root), True


def autoencoder_keys(study: Study, root: Path) -> list[str]:
    """Keys of all autoencoders over all sites, in the order of the grids; loads no model and reads no corpus."""
    width_of_no_consequence = 2**20
    keys = [
        key
        for text, site in resolve_sites(study, root).items()
        for key in expand(study, site, text, width_of_no_consequence)
    ]
    return list(dict.fromkeys(keys))


def declared_facts(study: Study, root: Path) -> Facts:
    """Facts from the sizes the study declares (`subject.shape`): enough for `plan`, never for a run."""
    from sae_pipeline.planning.consistency import refuse_contradictions

    shape = study.subject.shape
    if shape is None:
        raise PipelineError("subject.shape is not declared, so nothing can be planned without the model")
    sites = resolve_sites(study, root)
    widths = {site: 4 * shape.d_model if site.where == "mlp_mid" else shape.d_model for site in sites.values()}
    refuse_contradictions(study, widths, sites)
    return Facts(
        subject="declared",
        tokenizer="declared",
        norm=shape.norm,
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        vocab_size=shape.vocab_size,
        n_params=shape.n_params,
        max_positions=shape.max_positions,
        widths=widths,
        sites=sites,
        corpora={corpus.name: {"content": "declared"} for corpus in study.corpora},
        split_list={},
        probe_tasks=None if probe_tasks(study.evaluation.metrics) is None else {"content": "declared"},
    )


def _probe_tasks(study: Study, root: Path, corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Content of the probe tasks: of the files, or of the standard library and the two sides of the subject's card."""
    from sae_pipeline.tokens.corpora import STDLIB, fingerprint

    source = probe_tasks(study.evaluation.metrics)
    if source is None:
        return None
    if source != EMBEDDED_TASKS:
        return {"source": "files", "content": fingerprint(Corpus(name=PROBES, source=source), root=root)}
    path = _card_path(study, root)
    card = read_json(path) if path.is_file() else {}
    if not all(isinstance(card.get(side), list) and card[side] for side in ("train", "held_out")):
        raise PipelineError(
            f"evaluation.metrics.probes: tasks: {EMBEDDED_TASKS} follow the documents that a subject's card lists, and "
            f"{study.subject.id} ships no such card; name labelled .jsonl files under tasks, or leave probes out"
        )
    known = next((corpora[corpus.name] for corpus in study.corpora if corpus.source == STDLIB), None)
    content = known or fingerprint(Corpus(name=PROBES, source=STDLIB), root=root)
    sides = identity_of({side: card[side] for side in ("train", "held_out")})
    return {"source": EMBEDDED_TASKS, "content": dict(content), "sides": sides}


def _card_path(study: Study, root: Path) -> Path:
    """Where the subject's card would be."""
    from sae_pipeline.subjects.source import locate

    return locate(study.subject, root=root, weights=False).folder / "card.json"


def _split_lists(study: Study, root: Path) -> dict[str, list[str]]:
    """Held-out document names that the subject's card ships, for the corpora that follow its split."""
    names = [corpus.name for corpus in study.corpora if corpus.split == "embedded_card"]
    if not names:
        return {}
    card = _card_path(study, root)
    if not card.is_file():
        raise PipelineError(
            f"corpora: {names[0]!r} follows the split of the subject's card, but {study.subject.id} ships none; "
            "use split: near_duplicate_cluster"
        )
    held_out = read_json(card).get("held_out")
    if not isinstance(held_out, list):
        raise PipelineError(f"{card}: lists no held_out documents; use split: near_duplicate_cluster")
    return {name: held_out for name in names}
