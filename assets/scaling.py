"""scaling: law fits of each site from its evaluation table, and the report of the whole study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.publishing import Job, Stage
from resources import Rule
from sae_pipeline.store import atomic

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft


def _make_laws(job: Job) -> Mapping[Node, dict[str, Any]]:
    import pandas as pd

    from sae_pipeline.scaling import fit_study, scaling_points, write_result

    study = job.workspace.study
    summaries = {}
    for node, draft in job.drafts.items():
        table = job.workspace.artefact(node.inputs[0])
        metrics, saes = (pd.read_parquet(table.file(f"{name}.parquet")) for name in ("metrics", "saes"))
        points = scaling_points(metrics, saes, study.scaling.targets)
        summaries[node] = write_result(draft, fit_study(points, study.scaling, study.seed, progress=job.progress))
    return summaries


def _audit_laws(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.scaling import audit_draft

    return audit_draft(draft)


def _law_rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("parameters are finite", "non_finite", 0, 0),
        Rule("parameters lie in their intervals", "outside_interval", 0, 0),
        Rule("every point is fitted or refused with a reason", "unexplained", 0, 0),
        Rule("residuals are small", "rms_log_residual", maximum=0.1, severity="warn"),
    ]


def _show_laws(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.report import figures
    from sae_pipeline.scaling import read_result

    result = read_result(artefact)
    return {
        **pictures.numbers(artefact.summary),
        "fits": pictures.table(result.fits, ["fit_id", "parameter", "value", "ci_lo", "ci_hi", "hold_out_log_error"]),
        "refusals": pictures.table(result.refusals, ["fit_id", "n_points", "reason"]),
        **pictures.plots(
            **{target: lambda target=target: figures.laws(result, target) for target in workspace.study.scaling.targets}
        ),
    }


def _place_laws(workspace: Workspace, artefact: Artefact) -> None:
    copy_files(artefact, workspace.study_dir / "scaling" / artefact.key, ".parquet")


def copy_files(artefact: Artefact, folder: Any, suffix: str) -> None:
    """Copy an artefact's files of one kind to where people look for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in artefact.files:
        if name.endswith(suffix):
            atomic.replace(folder / name, artefact.file(name).read_bytes())


SCALING_LAWS = Stage(
    asset="scaling_laws",
    group="scaling",
    description="L(N) per k and joint L(N, K), with and without an irreducible term: intervals, or a reasoned refusal.",
    deps=("evaluation_table",),
    by="site",
    make=_make_laws,
    audit=_audit_laws,
    rules=_law_rules,
    show=_show_laws,
    place=_place_laws,
    index="fit_id",
    kinds=frozenset({"scipy"}),
    follows=True,
)


def _make_report(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.planning.report_inputs import collect_report
    from sae_pipeline.report import write_report

    work = job.workspace
    return {node: write_report(collect_report(work.lineage, work.outputs), draft) for node, draft in job.drafts.items()}


def _audit_report(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.report import audit_frame

    return audit_frame(draft)


def _report_rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("every autoencoder is in the table", "autoencoders", equals="autoencoders_expected"),
        Rule("the page stands alone", "external_references", 0, 0),
    ]


def _show_report(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    return {**pictures.numbers({key: value for key, value in artefact.summary.items() if key != "rows"})}


def _place_report(workspace: Workspace, artefact: Artefact) -> None:
    copy_files(artefact, workspace.study_dir / "report", ".html")
    atomic.replace(workspace.study_dir / "summary.json", artefact.file("summary.json").read_bytes())


REPORT = Stage(
    asset="report",
    group="scaling",
    description="One static HTML page and summary.json: lineage, planes, laws, training, densities, gates.",
    deps=("scaling_laws", "evaluation_table", "autoencoder", "dataset", "activations", "tokens"),
    by="study",
    make=_make_report,
    audit=_audit_report,
    rules=_report_rules,
    show=_show_report,
    place=_place_report,
    kinds=frozenset({"html"}),
    follows=True,
)
