"""The commands that read the tables of a study: `table` and `compare`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace


def table(options: argparse.Namespace) -> int:
    """Print every autoencoder of a study with its main figures, matched by sparsity, or one metric with intervals."""
    from resources.workspace import StudyGraph

    work = StudyGraph.load().workspace
    for site, tables in _tables(work).items():
        print(f"{site}\n")
        if options.metric is None:
            print(_all_metrics(tables), end="\n\n")
        else:
            print(_one_metric(tables["metrics"], options.metric), end="\n\n")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print every figure that two autoencoders share: the difference over the same documents, and what it is worth."""
    from resources.workspace import StudyGraph
    from sae_pipeline.evaluation.compare import compare as compare_two
    from sae_pipeline.store import PipelineError

    work = StudyGraph.load().workspace
    sites = {
        site: tables
        for site, tables in _tables(work).items()
        if options.site in (None, site) and {options.a, options.b} & set(tables["saes"]["autoencoder"])
    }
    if not sites:
        raise PipelineError(f"no table of study {work.study.study} holds {options.a} or {options.b} at that site")
    for site, tables in sites.items():
        found = compare_two(
            tables,
            options.a,
            options.b,
            resamples=work.study.evaluation.bootstrap.resamples,
            seed=work.study.seed,
        )
        print(f"{site}\na = {options.a}\nb = {options.b}\n")
        print(_written(found), end="\n\n")
    print(
        "difference: a − b over the same documents, with its 95 % interval. reliable: what two trainings and\n"
        "evaluations of equal autoencoders stay below in 95 % of all cases; where the study has no other seeds of\n"
        "them it counts the documents alone. better: sure over these documents, and larger than that."
    )
    return 0


def _tables(work: Workspace) -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of every site that has them."""
    from sae_pipeline.evaluation import read_tables
    from sae_pipeline.store import PipelineError

    nodes = {name.partition("/")[2]: name for name in work.lineage.nodes if name.startswith("evaluation_table/")}
    found = {site: artefact for site, name in nodes.items() if (artefact := work.find(name)) is not None}
    if not found:
        study = work.study.study
        raise PipelineError(
            f"study {study} has no evaluation table as it is now; make it: sae-pipeline run {study} "
            f"(what is missing: sae-pipeline status {study})"
        )
    return {site: read_tables(artefact) for site, artefact in found.items()}


def _all_metrics(tables: dict[str, pd.DataFrame]) -> str:
    from sae_pipeline.report import QUANTITIES, matched_table

    matched = matched_table(tables["metrics"], tables["saes"])
    shown = matched[["autoencoder", *QUANTITIES]].rename(
        columns={name: quantity.label for name, quantity in QUANTITIES.items()}
    )
    return _text(shown)


def _one_metric(metrics: pd.DataFrame, metric: str) -> str:
    from sae_pipeline.store import PipelineError

    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        known = ", ".join(sorted(metrics["metric"].unique()))
        raise PipelineError(f"no figure is called {metric!r}; there are {known}")
    columns = ["autoencoder", "variant", "value", "se", "ci_lo", "ci_hi", "unit", "n_units", "unit_kind", "reason"]
    return _text(rows[columns].dropna(axis="columns", how="all"))


def _written(found: pd.DataFrame) -> str:
    shown = found.assign(
        better=found["verdict"],
        figure=found["metric"] + found["variant"].map(lambda variant: "" if variant == "all" else f" {variant}"),
    )
    columns = {"min_reliable_diff": "reliable", "n_units": "documents"}
    names = ["figure", "a", "b", "difference", "ci_lo", "ci_hi", "min_reliable_diff", "n_units", "better"]
    return _text(shown[names].rename(columns=columns))


def _text(frame: pd.DataFrame) -> str:
    return str(frame.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.4g}"))
