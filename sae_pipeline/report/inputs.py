"""What a report is made from: tables and flat dictionaries, nothing that needs a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from sae_pipeline.scaling import ScalingResult

STAGES = ("tokens", "activations", "dataset", "autoencoders", "evaluation", "scaling")
"""The six stages, in the order of the chain."""

Facts = Mapping[str, object]
"""Labels (with their unit) and values as a person reads them; numbers are formatted by the report."""

GATE_COLUMNS = ("node", "check", "column", "value", "limit", "severity", "passed", "where")


@dataclass(frozen=True)
class LineageNode:
    """One published artefact: its stage (one of `STAGES`), name, identity (sha256 hex), stage version, key figures."""

    stage: str
    name: str
    identity: str
    version: int
    figures: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class SiteInputs:
    """What is known of one site.

    Attributes:
        site: key of the site, e.g. `code.2.resid_post`.
        autoencoders: autoencoder, recipe, n, k (missing for recipes without one), seed, sae_id.
        metrics: the long metrics table; columns as `matched_table` reads them.
        curves: the evaluation's curves; `density_hist`, `nmse_by_position` and `dce_by_position` are drawn.
        training: by autoencoder key, the training record with tokens, nmse, dead.
        scaling: the laws, or None where they were not fitted.
        shards: statistics of the activation shards with shard, mean_norm, std; None where not at hand.
        data: facts about the activations, the dataset and the evaluation set.
        dead_window_tokens: the number of tokens after which a silent latent counts as dead in training.
    """

    site: str
    autoencoders: pd.DataFrame
    metrics: pd.DataFrame
    curves: pd.DataFrame
    training: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    scaling: ScalingResult | None = None
    shards: pd.DataFrame | None = None
    data: Facts = field(default_factory=dict)
    dead_window_tokens: int | None = None


@dataclass(frozen=True)
class ReportInputs:
    """A whole study.

    Attributes:
        title: heading of the page.
        study: name of the study.
        subject: facts about the model under study.
        lineage: published artefacts in any order.
        sites: one entry per site, in the order of the study.
        gates: one row per verdict, columns `GATE_COLUMNS`; `severity` is "block" or "warn".
        tokens: facts about the tokens: documents, rows, overlap, what was excluded.
        documents: split and n_tokens of every document, or None.
        provenance: package versions and the like; nothing that differs between machines.
        null: what makes the study a null control, in words; None where it is none.
    """

    title: str
    study: str
    subject: Facts
    lineage: Sequence[LineageNode]
    sites: Sequence[SiteInputs]
    gates: pd.DataFrame
    tokens: Facts = field(default_factory=dict)
    documents: pd.DataFrame | None = None
    provenance: Facts = field(default_factory=dict)
    null: str | None = None
