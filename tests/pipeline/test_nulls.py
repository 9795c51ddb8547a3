"""The null controls, each through the whole chain, beside the real study."""

import json

import pandas as pd
import pytest

from resources import Rule, ValidatorResource
from sae_pipeline import cli
from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.planning.staleness import stale
from sae_pipeline.store import PipelineError
from tests.pipeline.conftest import Bench

GRID = "autoencoders.grids=[{recipe: topk, n: [128, 256], k: [4, 8]}]"
DRAWN = ("study=smoke-drawn", "dataset.null=gaussian_cov", GRID)
SPLICED_NOWHERE = ("evaluation.metrics={reconstruction: {}, density: {}}", "scaling.targets=[nmse]")
TWIN = (
    "study=smoke-twin",
    "subject.alias=twin",
    "subject.weights=untrained",
    "sites={twin.3of5.resid_post: {normaliser: paper}}",
    "autoencoders.grids=[{recipe: topk, n: [128, 256], k: 8}]",
)


def finish(bench: Bench) -> Bench:
    assert bench.run() is None
    work = bench.graph.workspace
    assert stale(work.lineage, work.outputs, work.pointers) == []
    return bench


def tables(bench: Bench) -> dict[str, pd.DataFrame]:
    folder = bench.graph.workspace.study_dir / "evaluation" / bench.graph.sites[0]
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def figure(bench: Bench, metric: str, variant: str = "all") -> "pd.Series[float]":
    metrics = tables(bench)["metrics"]
    return metrics[(metrics["metric"] == metric) & (metrics["variant"] == variant)].set_index("autoencoder")["value"]


def autoencoders(bench: Bench) -> list[Autoencoder]:
    work = bench.graph.workspace
    return [Autoencoder.load(work.artefact(node.name).path) for node in work.lineage.of_asset("autoencoder")]


def assert_says_so(bench: Bench, null: str) -> None:
    """Report, summary, tables and every saved autoencoder."""
    folder = bench.graph.workspace.study_dir
    assert f"null control: {null}" in (folder / "report" / "index.html").read_text()
    assert json.loads((folder / "summary.json").read_text())["null"] == null
    assert set(tables(bench)["saes"]["null"]) == {null}
    assert {made.provenance["lineage"]["config"]["null"] for made in autoencoders(bench)} == {null}


def assert_left_out(bench: Bench) -> None:
    """What cannot be asked of draws is among the checks by name, with the reason."""
    site = bench.graph.sites[0]
    gates = json.loads((bench.graph.workspace.study_dir / "gates" / f"dataset--{site}.json").read_text())
    left_out = {v["check"]: v["limit"] for v in gates["verdicts"] if v["value"] == "left out"}
    assert set(left_out) == {"normaliser round trip", "batches mix contexts", "batches mix documents"}
    assert all("draw" in reason for reason in left_out.values())
    assert {"draws have the rows' mean", "draws have the rows' covariance"} < {v["check"] for v in gates["verdicts"]}


def test_gaussian_draws_run_through_the_whole_chain(smoke, bench, monkeypatch, capsys):
    drawn = finish(bench.with_settings(*DRAWN, *SPLICED_NOWHERE))
    assert_says_so(drawn, "gaussian_cov dataset")
    assert {made.normaliser.name for made in autoencoders(drawn)} == {"none"}

    # What the real rows' structure is worth: at equal size, an autoencoder does far worse without it.
    real_nmse, drawn_nmse = figure(smoke, "nmse"), figure(drawn, "nmse")
    assert len(drawn_nmse) == 4 and (drawn_nmse < 1).all()
    assert (drawn_nmse > 1.25 * real_nmse[drawn_nmse.index]).all()
    points = pd.read_parquet(drawn.graph.workspace.study_dir / "scaling" / drawn.graph.sites[0] / "points.parquet")
    assert set(points["target"]) == {"nmse"} and set(points["autoencoder"]) == set(drawn_nmse.index)

    # The tables have the form of the real ones, over the same documents, and are not taken for them.
    real, null = tables(smoke), tables(drawn)
    for name in ("metrics", "unit_stats", "curves", "latent_stats"):
        assert list(null[name]) == list(real[name])
    documents = [set(found["unit_stats"].query("metric == 'nmse'")["unit_id"]) for found in (real, null)]
    assert documents[0] == documents[1]
    assert set(null["metrics"]["evaluation_id"]).isdisjoint(real["metrics"]["evaluation_id"])
    assert_left_out(drawn)

    for name in ("SAE_STUDY", "SAE_SET", "SAE_OUTPUTS"):
        monkeypatch.setenv(name, "")  # and put back, whatever the command sets
    outputs = str(drawn.graph.outputs_dir)
    assert cli.main(["table", "smoke", "--beside", "smoke-drawn", "--metric", "nmse", "--outputs", outputs]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " nmse " in line and "without" not in line]
    assert {key: float(of_draws) for key, _, _, of_draws, *_ in rows} == pytest.approx(dict(drawn_nmse), rel=1e-3)
    assert {key: float(value) for key, _, value, *_ in rows} == pytest.approx(
        dict(real_nmse[drawn_nmse.index]), rel=1e-3
    )


def test_an_untrained_twin_runs_through_the_whole_chain(smoke, bench):
    twin = finish(bench.with_settings(*TWIN))
    assert_says_so(twin, "untrained subject")
    work = twin.graph.workspace
    assert work.lineage["tokens"].identity == smoke.graph.workspace.lineage["tokens"].identity
    clean = [
        found.artefact(f"evaluation_set/{site}").summary["clean_ce"]
        for found, site in ((smoke.graph.workspace, smoke.graph.sites[0]), (work, twin.graph.sites[0]))
    ]
    assert clean[0] < 5 and clean[1] == pytest.approx(8.3, abs=0.2)  # ln 4096 = 8.32 nats: it knows nothing
    assert (figure(twin, "nmse") < 1).all() and (figure(twin, "dce", "control_untouched") == 0).all()
    assert (figure(twin, "dce").abs() < 0.05).all()


def test_a_null_that_asks_to_splice_is_refused_before_anything_is_made(bench):
    before = sorted(bench.graph.outputs_dir.rglob("*"))
    with pytest.raises(PipelineError, match=r"evaluation\.metrics: \{reconstruction: \{\}, density: \{\}\}"):
        bench.with_settings(*DRAWN).run()
    assert sorted(bench.graph.outputs_dir.rglob("*")) == before


def test_a_rule_that_is_left_out_judges_nothing():
    frame = pd.DataFrame({"here": [1.0, 2.0]})
    rules = [Rule("a", "here", 0, 1.5), Rule("b", "gone", left_out="there is nothing to judge", severity="warn")]
    judged, left_out = ValidatorResource().validate("test", {"part": frame}, rules)["part"]
    assert not judged.passed and judged.value == 2.0
    assert left_out.passed and (left_out.value, left_out.limit) == ("left out", "there is nothing to judge")
