"""Probes in the real thing: tasks in files, made once a site, read by every autoencoder without the subject."""

import json
import shutil

import pandas as pd
import pytest

from assets.automation import job_assets
from resources import SubjectResource
from sae_pipeline.evaluation import read_metric, read_tables
from tests.pipeline.conftest import Bench

WORDS = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def probed(bench, tmp_path) -> Bench:
    """The finished smoke study, asked for probes of two tasks, one of which has too few rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"text": f"{word}{i} = 0\n{kind}", "label": int(kind == "def"), "split": "test" if i >= 10 else "train"}
        for i in range(20)
        for word in WORDS
        for kind in ("def", "return")
    ]
    for name, some in (("definition", rows), ("few", [*rows[:4], *rows[-4:]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    settings = f"{{tasks: {folder}, k: [1, 2], permutations: 1}}"
    return bench.with_settings(
        f"evaluation.metrics={{reconstruction: {{}}, density: {{}}, downstream: {{}}, probes: {settings}}}"
    )


def test_probes_of_a_finished_study_need_the_subject_once_a_site(probed, monkeypatch):
    work, site = probed.graph.workspace, probed.graph.sites[0]
    before = {name: work.artefact(name).created_at for name in (f"evaluation_set/{site}", "tokens")}
    assert job_assets(probed.graph)["build_dataset"][-1] == "probe_set"
    assert probed.run() is None
    assert {name: work.artefact(name).created_at for name in before} == before
    summary = work.artefact(f"probe_set/{site}").summary
    assert (summary["tasks"], summary["unusable"], summary["rows"]) == (2, 1, 168)
    names = [node.name for node in work.lineage.of_asset("eval_probes")]
    results = {name: read_metric(work.artefact(name)).probe_results for name in names}
    for rows in results.values():
        best = rows[(rows["probe"] == "best") & (rows["task"] == "definition")].set_index("code")
        assert best.loc["pre", "loss"] < 0.5 and best["lexical"].all() and set(best["n_test"]) == {80}
        assert set(rows[rows["task"] == "few"]["status"]) == {"na"}
    tables = read_tables(work.artefact(f"evaluation_table/{site}"))
    assert len(tables["probe_results"]) == sum(map(len, results.values()))
    shown = pd.read_parquet(work.study_dir / "evaluation" / site / "probe_results.parquet")
    pd.testing.assert_frame_equal(shown, tables["probe_results"])

    monkeypatch.setattr(SubjectResource, "get", _forbidden)
    for name in names:
        shutil.rmtree(work.artefact(name).path)
    assert probed.run() is None
    again = {name: read_metric(work.artefact(name)).probe_results for name in names}
    for name, rows in results.items():
        pd.testing.assert_frame_equal(again[name], rows, check_exact=True)


def _forbidden(*_: object) -> None:
    raise AssertionError("the subject was loaded")
