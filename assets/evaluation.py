"""evaluation: a shared cache of codes per autoencoder, one asset per metric, the champion, the table of a site."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets import pictures
from assets.dataset import held_out
from assets.probes import probe_data
from assets.publishing import Job, Stage
from assets.scaling import copy_files
from resources import Rule
from sae_pipeline.study import PROBES, STABILITY, siblings

if TYPE_CHECKING:
    import pandas as pd

    from resources.workspace import Workspace
    from sae_pipeline.activations import EvaluationSet
    from sae_pipeline.autoencoders import Autoencoder
    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.store import Artefact, Draft


def _by_site(job: Job) -> Iterator[tuple[EvaluationSet, str, list[tuple[Node, Draft]]]]:
    """The nodes of a run by site, each site with its evaluation set, opened once, and the identity of that."""
    sites: dict[str, list[tuple[Node, Draft]]] = {}
    for node, draft in job.drafts.items():
        sites.setdefault(node.name.split("/")[1], []).append((node, draft))
    for site, members in sites.items():
        yield *held_out(job.workspace, site), members


def _autoencoder(workspace: Workspace, node: Node) -> tuple[Artefact, Autoencoder]:
    from sae_pipeline.autoencoders import Autoencoder
    from sae_pipeline.subjects import pick_device

    _, site, key = node.name.split("/")
    artefact = workspace.artefact(f"autoencoder/{site}/{key}")
    return artefact, Autoencoder.load(artefact.path, pick_device(workspace.study.subject.device))


def _make_codes(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.evaluation import build_codes

    summaries = {}
    for evaluation_set, evaluation_id, members in _by_site(job):
        for node, draft in members:
            artefact, autoencoder = _autoencoder(job.workspace, node)
            summaries[node] = build_codes(
                draft,
                autoencoder,
                evaluation_set,
                sae_id=artefact.identity,
                evaluation_id=evaluation_id,
                progress=job.progress,
            )
    return summaries


def _audit_codes(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.evaluation import audit_codes

    return audit_codes(draft)


def _code_rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("every code is finite", "non_finite", 0, 0),
        Rule("latents exist", "out_of_range", 0, 0),
        Rule("codes fall along a row", "unsorted", 0, 0),
        Rule("the stored L0 is that of the codes", "l0_mismatch", 0, 0),
        Rule("L0 ≤ k on every token", "max_l0", at_most="k"),
        Rule("every row is encoded", "rows", equals="rows_expected"),
        Rule("files are as committed", "damage", empty=True),
        Rule("rows worse than an empty code", "worse_than_nothing", maximum=0.05, severity="warn"),
    ]


def _show_codes(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.evaluation import CodesCache
    from sae_pipeline.report import figures

    codes = CodesCache.open(artefact)
    return {
        **pictures.numbers(artefact.summary),
        **pictures.plots(
            l0=lambda: figures.histograms({"active latents per token": codes.scalars("l0")}, x_label="L0"),
            error=lambda: figures.histograms({"tokens": codes.scalars("err2")}, x_label="squared error"),
        ),
    }


CODES = Stage(
    asset="codes",
    group="evaluation",
    description="Held-out tokens encoded once: sparse codes that every metric reads.",
    deps=("autoencoder", "evaluation_set"),
    by="autoencoder",
    make=_make_codes,
    audit=_audit_codes,
    rules=_code_rules,
    show=_show_codes,
    pool="gpu",
    kinds=frozenset({"zarr", "torch"}),
    follows=True,
)


def metric_stage(name: str) -> Stage:
    """The asset of one metric, so that one metric can be backfilled over all autoencoders."""
    return Stage(
        asset=f"eval_{name}",
        group="evaluation",
        description=_METRICS.get(name, f"The metric {name}."),
        deps=("codes", "autoencoder", "evaluation_set", *(("probe_set",) if name == PROBES else ())),
        by="autoencoder",
        make=functools.partial(_make_metric, name),
        audit=_audit_metric,
        rules=functools.partial(_metric_rules, name),
        show=functools.partial(_show_metric, name),
        pool="gpu",
        kinds=frozenset({"pandas"}),
        follows=True,
    )


_METRICS = {
    "reconstruction": "NMSE, explained variance, L0, norm ratio, cosine, relative bias; NMSE by position.",
    "density": "How often each latent fires: dead, silent@T with its bound, dense share, log-density histogram.",
    "progressive": "NMSE of every shorter and longer code: TopK(k′) and JumpReLU(θ) swapped in at test time.",
    "concentration": "Over how many of its active latents a code is spread: effective L0, entropy, largest share.",
    "ablation": "How sparse the effects of single latents on the logits are, beside channels and random directions.",
    "shrinkage": "Active latents chosen anew by least squares: what the encoder had taken off them.",
    "examples": "Where each latent fires most, and at random, with the tokens around.",
    "explanations": "Patterns of tokens for a sample of latents (N2G): precision, recall, F1, simulated code.",
    "antipodal": "Latents with a twin of one sign or the other, by decoder and encoder; cosine of the nearest.",
    "context_length": "NMSE and KL in longer contexts than trained on, beside the same tokens in short ones.",
    STABILITY: "Which latents autoencoders of other seeds have, too: nearest and matched cosines, shares, chance.",
    PROBES: "Logistic probes of the best latents on binary tasks, beside permuted labels, channels, random directions.",
    "downstream": "KL and ΔCE of the subject with the reconstruction spliced in, beside zero and mean ablation.",
}


def _make_metric(name: str, job: Job) -> Mapping[Node, dict[str, Any]]:
    """All autoencoders of a site together: what does not depend on them is computed once."""
    from sae_pipeline.evaluation import METRICS, CodesCache, MetricInputs, write_metric

    work, metric = job.workspace, METRICS[name]
    summaries = {}
    for evaluation_set, evaluation_id, of_site in _by_site(job):
        inputs = []
        members = [(node, draft) for node, draft in of_site if not _lacks(job, node)]
        site_probes = probe_data(work, str(evaluation_set.site)) if name == PROBES else None
        for node, _ in members:
            _, site, key = node.name.split("/")
            artefact, autoencoder = _autoencoder(work, node)
            inputs.append(
                MetricInputs(
                    autoencoder_key=key,
                    sae_id=artefact.identity,
                    evaluation_id=evaluation_id,
                    autoencoder=autoencoder,
                    codes=CodesCache.open(work.artefact(f"codes/{site}/{key}")),
                    evaluation_set=evaluation_set,
                    resamples=work.study.evaluation.bootstrap.resamples,
                    seed=work.study.seed,
                    parameters=work.study.evaluation.metrics[name],
                    probe_data=site_probes,
                    subject=job.subject() if metric.needs_subject else None,
                    siblings=_siblings(work, site, key) if name == STABILITY else {},
                    dead=(artefact.summary["train"]["dead"], work.lineage.spec(node).dead_after_tokens),
                    progress=job.progress,
                )
            )
        results = metric.run_many(inputs) if inputs else []
        summaries |= {node: write_metric(draft, result) for (node, draft), result in zip(members, results, strict=True)}
    return summaries


def _lacks(job: Job, node: Node) -> bool:
    """Whether a sibling that the node is made from is not published; then it is noted as failed."""
    own = node.name.replace(node.asset, "autoencoder", 1)
    others = [name for name in node.inputs if name.startswith("autoencoder/") and name != own]
    lacking = [name for name in others if job.workspace.find(name) is None]
    if lacking:
        job.failures[node] = f"it is made from {', '.join(lacking)}, not published yet; make that first"
    return bool(lacking)


def _siblings(work: Workspace, site: str, key: str) -> dict[int, Autoencoder]:
    specs = work.lineage.specs_at(site)
    nodes = {seed: work.lineage[f"autoencoder/{site}/{other}"] for seed, other in siblings(specs, key).items()}
    return {seed: _autoencoder(work, node)[1] for seed, node in nodes.items()}


def _audit_metric(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.evaluation import audit_metric

    return audit_metric(draft)


def _metric_rules(name: str, workspace: Workspace) -> Sequence[Rule]:
    common = [
        Rule("there are figures", "rows", 1),
        Rule("a missing figure has its reason", "missing_without_reason", 0, 0),
        Rule("no figure is infinite", "infinite", 0, 0),
        Rule("figures lie in their intervals", "outside_interval", 0, 0, severity="warn"),
    ]
    if name == "reconstruction":
        return [*common, Rule("better than predicting the mean", "nmse", 0, workspace.study.gates.nmse_max)]
    if name == "downstream":
        return [
            *common,
            Rule("splicing the untouched activation: KL", "control_kl", 0, 0),
            Rule("splicing the untouched activation: ΔCE", "control_dce", 0, 0),
            Rule("through the normaliser and back: KL", "round_trip_kl", -1e-6, 1e-6),
            Rule("KL is not negative", "kl", 0),
            Rule("ΔCE is positive", "dce", 0, severity="warn"),
            Rule("ΔCE is below mean ablation's", "dce", at_most="mean_ablation_dce", severity="warn"),
        ]
    return common


def _show_metric(name: str, workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    from sae_pipeline.evaluation import read_metric
    from sae_pipeline.report import metric_figures

    result = read_metric(artefact)
    return {
        **pictures.numbers(artefact.summary),
        "metrics": pictures.table(result.metrics, ["metric", "variant", "value", "ci_lo", "ci_hi", "unit", "status"]),
        **pictures.plots(**metric_figures(name, result)),
    }


def _make_champion(job: Job) -> Mapping[Node, dict[str, Any]]:
    from sae_pipeline.evaluation import challenge

    work = job.workspace
    summaries = {}
    for evaluation_set, _, members in _by_site(job):
        for node, draft in members:
            _, site, key = node.name.split("/")
            verdict = challenge(
                work.artefact(f"autoencoder/{site}/{key}"),
                work.best(f"{site}/{key}"),
                evaluation_set,
                resamples=work.study.evaluation.bootstrap.resamples,
                seed=work.study.seed,
            )
            draft.write_json("verdict.json", verdict)
            summaries[node] = {"place": f"{site}/{key}", **verdict}
    return summaries


def _audit_champion(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([draft.read_json("verdict.json")])


def _show_champion(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    return pictures.numbers(artefact.summary)


def _place_champion(workspace: Workspace, artefact: Artefact) -> None:
    place = artefact.summary["place"]
    verdict = {name: value for name, value in artefact.summary.items() if name != "place"}
    workspace.crown(place, workspace.artefact(f"autoencoder/{place}"), verdict)


CHAMPION = Stage(
    asset="champion",
    group="evaluation",
    description="Compares a new version of an autoencoder with the best so far, paired; moves best.json.",
    deps=("eval_reconstruction", "autoencoder", "evaluation_set"),
    by="autoencoder",
    make=_make_champion,
    audit=_audit_champion,
    rules=lambda workspace: [Rule("the challenger's NMSE is a number", "nmse", 0)],
    show=_show_champion,
    place=_place_champion,
    kinds=frozenset({"pandas"}),
    follows=True,
)


def _make_table(job: Job) -> Mapping[Node, dict[str, Any]]:
    """Every metric of every autoencoder of the site that is published; the summary says how many of how many."""
    from sae_pipeline.evaluation import write_table

    work = job.workspace
    return {
        node: write_table(
            draft,
            [found for name in node.inputs if (found := work.find(name)) is not None],
            work.lineage.autoencoder_frame(node.name.partition("/")[2]),
            expected=len(node.inputs),
        )
        for node, draft in job.drafts.items()
    }


def _audit_table(job: Job, node: Node, draft: Draft) -> pd.DataFrame:
    from sae_pipeline.evaluation import audit_table

    return audit_table(draft)


def _table_rules(workspace: Workspace) -> Sequence[Rule]:
    return [
        Rule("there are figures", "rows", 1),
        Rule("every figure is there once", "duplicates", 0, 0),
        Rule("every metric of every autoencoder", "results", equals="results_expected"),
        Rule("NMSE falls in n and k", "disorder_beyond_2se", maximum=0, severity="warn"),
    ]


def _show_table(workspace: Workspace, artefact: Artefact) -> Mapping[str, Any]:
    import pandas as pd

    from sae_pipeline.report import figures, matched_table

    metrics, saes = (pd.read_parquet(artefact.file(f"{name}.parquet")) for name in ("metrics", "saes"))
    matched = matched_table(metrics, saes)
    return {
        **pictures.numbers(artefact.summary),
        "autoencoders": pictures.table(matched, ["autoencoder", "l0", "nmse", "dce", "kl", "dead", "silent"]),
        **pictures.plots(
            l0_nmse=lambda: figures.plane(matched, "nmse"),
            l0_dce=lambda: figures.plane(matched, "dce"),
        ),
    }


def _place_table(workspace: Workspace, artefact: Artefact) -> None:
    copy_files(artefact, workspace.study_dir / "evaluation" / artefact.key.removeprefix("table-"), ".parquet")


def table_stage(metrics: tuple[str, ...]) -> Stage:
    """The tables of a site, derived from the files of its metrics."""
    return Stage(
        asset="evaluation_table",
        group="evaluation",
        description="All metrics of a site as tidy tables: saes, metrics, unit_stats, curves, latent_stats, examples …",
        deps=metrics,
        by="site",
        make=_make_table,
        audit=_audit_table,
        rules=_table_rules,
        show=_show_table,
        place=_place_table,
        kinds=frozenset({"pandas", "parquet"}),
        follows=True,
    )
