"""The commands that read the tables of a study: `table` and `compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace

    Tables = Mapping[str, Mapping[str, pd.DataFrame]]


_TABLE = "evaluation_table/"


def table(options: argparse.Namespace) -> int:
    """Print every autoencoder of a study with its main figures, matched by sparsity, or one metric with intervals.

    With controls, each figure beside theirs.
    """
    from resources.workspace import StudyGraph

    work = StudyGraph.load().workspace
    controls = {name: _made(work, name) for name in options.beside}
    for site, tables in _tables(work).items():
        print(f"{site}\n")
        if controls:
            print(_beside(tables["metrics"], controls, options.metric), end="\n\n")
        elif options.metric is None:
            print(_all_metrics(tables), end="\n\n")
        else:
            print(_one_metric(tables["metrics"], options.metric), end="\n\n")
    if controls:
        print("\n".join(_legend(controls)))
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


def _tables(work: Workspace) -> Tables:
    """The tables of every site that has them."""
    from sae_pipeline.evaluation import read_tables
    from sae_pipeline.store import PipelineError

    nodes = {name.partition("/")[2]: name for name in work.lineage.nodes if name.startswith(_TABLE)}
    found = {site: artefact for site, name in nodes.items() if (artefact := work.find(name)) is not None}
    if not found:
        study = work.study.study
        raise PipelineError(
            f"study {study} has no evaluation table as it is now; make it: sae-pipeline run {study} "
            f"(what is missing: sae-pipeline status {study})"
        )
    return {site: read_tables(artefact) for site, artefact in found.items()}


def _made(work: Workspace, study: str) -> Tables:
    """The tables that a study made last, by site, whatever its file says now."""
    from sae_pipeline.evaluation import read_tables
    from sae_pipeline.store import Artefact, PipelineError, Pointers

    root = work.outputs.root
    pointed = [
        (name.partition("/")[2], path) for name, path in Pointers(root, study).items() if name.startswith(_TABLE)
    ]
    if not pointed:
        known = sorted(path.parent.name for path in root.glob("*/current.json"))
        raise PipelineError(
            f"no study {study!r} has made an evaluation table in {root}; run it first. "
            f"Studies there: {', '.join(known) or 'none'}"
        )
    return {site: read_tables(Artefact.open(root / path)) for site, path in pointed}


def _all_metrics(tables: Mapping[str, pd.DataFrame]) -> str:
    from sae_pipeline.report import QUANTITIES, matched_table

    matched = matched_table(tables["metrics"], tables["saes"])
    shown = matched[["autoencoder", *QUANTITIES]].rename(
        columns={name: quantity.label for name, quantity in QUANTITIES.items()}
    )
    return _text(shown)


def _one_metric(metrics: pd.DataFrame, metric: str) -> str:
    columns = ["autoencoder", "variant", "value", "se", "ci_lo", "ci_hi", "unit", "n_units", "unit_kind", "reason"]
    return _text(_rows_of(metrics, metric)[columns].dropna(axis="columns", how="all"))


def _rows_of(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    from sae_pipeline.store import PipelineError

    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        known = ", ".join(sorted(metrics["metric"].unique()))
        raise PipelineError(f"no figure is called {metric!r}; there are {known}")
    return rows


def _beside(metrics: pd.DataFrame, controls: Mapping[str, Tables], metric: str | None) -> str:
    """Figures that at least one control has, with value, difference and its standard error for each; and the rest."""
    import pandas as pd

    from sae_pipeline.evaluation import beside

    others = {name: pd.concat([tables["metrics"] for tables in sites.values()]) for name, sites in controls.items()}
    found = beside(_chosen(metrics, metric), others)
    parts = [found[found["control"] == name].reset_index(drop=True) for name in controls]
    both = pd.concat([part["difference"].notna() for part in parts], axis="columns").any(axis="columns")
    first = parts[0].assign(figure=_figures(parts[0]))[["autoencoder", "figure", "value"]]
    columns = {"control_value": "", "difference": "difference", "difference_se": "± se"}
    against = [
        part[list(columns)].rename(columns={**columns, "control_value": name})
        for name, part in zip(controls, parts, strict=True)
    ]
    alone = found[found["difference"].isna()].groupby(["control", "reason"], sort=False).size().reset_index(name="n")
    rest = [f"{name}: {n} without a counterpart; {reason}" for name, reason, n in alone.itertuples(index=False)]
    return "\n".join([_text(pd.concat([first, *against], axis="columns")[both]), *(["", *rest] if rest else [])])


def _chosen(metrics: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """The rows of one metric, or of the main figures."""
    from sae_pipeline.report import QUANTITIES

    if metric is not None:
        return _rows_of(metrics, metric)
    main = {(quantity.metric, quantity.variant) for quantity in QUANTITIES.values()}
    return metrics[[pair in main for pair in zip(metrics["metric"], metrics["variant"], strict=True)]]


def _legend(controls: Mapping[str, Tables]) -> Sequence[str]:
    """What each control is, and what stands in the columns."""
    nulls = {
        name: {null for tables in sites.values() for null in tables["saes"].get("null", [])}
        for name, sites in controls.items()
    }
    return [
        *(f"{name}: {', '.join(sorted(found)) or 'no null control'}" for name, found in nulls.items()),
        "difference: the study's figure − the control's. ± se: its standard error, the two taken as independent.",
    ]


def _written(found: pd.DataFrame) -> str:
    shown = found.assign(better=found["verdict"], figure=_figures(found))
    columns = {"min_reliable_diff": "reliable", "n_units": "documents"}
    names = ["figure", "a", "b", "difference", "ci_lo", "ci_hi", "min_reliable_diff", "n_units", "better"]
    return _text(shown[names].rename(columns=columns))


def _figures(rows: pd.DataFrame) -> pd.Series[str]:
    return rows["metric"] + rows["variant"].map(lambda variant: "" if variant == "all" else f" {variant}")


def _text(frame: pd.DataFrame) -> str:
    return str(frame.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.4g}"))
