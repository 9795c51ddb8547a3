"""`sae-pipeline table STUDY --beside CONTROL`, on tables that are made up."""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from resources.workspace import StudyGraph
from sae_pipeline.cli import _parser
from sae_pipeline.comparing import table
from sae_pipeline.evaluation.site_table import RECORD
from sae_pipeline.evaluation.tables import TABLES, empty, frame
from sae_pipeline.store import Draft, Outputs, PipelineError, Pointers

KEYS = ("topk-n64-k4", "topk-n128-k4")


def metrics_of(site, keys, offset):
    rows = [
        {
            "autoencoder": key, "sae_id": key, "site": site, "evaluation_id": "e", "metric": metric, "variant": variant,
            "value": 0.25 + offset, "unit": "1", "better": "lower", "se": 0.03, "n_units": 9, "status": "ok",
            "metric_version": 1,
        }
        for key in keys
        for metric, variant in (("nmse", "all"), ("nmse", "without_position_0"), ("kl", "zero_ablation"))
    ]  # fmt: skip
    return frame("metrics", rows)


def made(root, study, site, keys, offset, **described):
    """The table of a site, published and pointed at."""
    saes = pd.DataFrame({"autoencoder": keys, "sae_id": keys, "recipe": "topk", "n": 64, "k": 4, "seed": 0} | described)
    tables = {name: empty(name) for name in TABLES} | {"saes": saes, "metrics": metrics_of(site, keys, offset)}
    folder = Outputs(root).artefact_dir("evaluation", f"table-{study}", "0" * 64)
    with Draft.open(folder, stage="evaluation", key=f"table-{study}", identity="0" * 64, lineage={}) as draft:
        for name, rows in tables.items():
            draft.write_bytes(f"{name}.parquet", rows.to_parquet())
        draft.write_json(RECORD, {})
        artefact = draft.publish({})
    Pointers(root, study).set(f"evaluation_table/{site}", artefact)
    return artefact


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Print the table of the study `real`, which has two controls."""
    ours = made(tmp_path, "real", "code.2.resid_post", list(KEYS), 0.0)
    made(tmp_path, "drawn", "code.2.resid_post", list(KEYS), 0.5, null="gaussian_cov dataset")
    made(tmp_path, "twin", "twin.2.resid_post", list(KEYS[:1]), 0.25, null="untrained subject")
    work = SimpleNamespace(
        lineage=SimpleNamespace(nodes={"tokens": None, "evaluation_table/code.2.resid_post": None}),
        find=lambda name: ours, outputs=Outputs(tmp_path), study=SimpleNamespace(study="real"),
    )  # fmt: skip
    monkeypatch.setattr(StudyGraph, "load", lambda: SimpleNamespace(workspace=work))

    def call(*beside, metric=None):
        assert table(Namespace(beside=beside, metric=metric)) == 0
        return capsys.readouterr().out

    return call


def lines_of(text, key):
    return [line.split() for line in text.splitlines() if line.split()[:1] == [key]]


def test_each_figure_has_its_controls_beside_it(ask):
    text = ask("drawn", "twin")
    (small,), (large,) = (lines_of(text, key) for key in KEYS)
    se = f"{np.hypot(0.03, 0.03):.4g}"
    assert small[1:] == ["nmse", "0.25", "0.75", "-0.5", se, "0.5", "-0.25", se]
    assert large[1:] == ["nmse", "0.25", "0.75", "-0.5", se, "–", "–", "–"]
    assert "drawn: gaussian_cov dataset\ntwin: untrained subject\n" in text
    assert "twin: 1 without a counterpart; in the control: no such autoencoder at this place" in text


def test_one_metric_shows_all_its_variants(ask):
    text = ask("drawn", metric="nmse")
    assert [len(lines_of(text, key)) for key in KEYS] == [2, 2] and "nmse without_position_0" in text
    with pytest.raises(PipelineError, match="no figure is called 'nmsee'; there are kl, nmse"):
        ask("drawn", metric="nmsee")


def test_without_controls_the_table_is_what_it_was(ask):
    text = ask()
    assert "NMSE" in text and "difference" not in text


def test_a_control_that_was_never_made_is_refused_with_those_that_were(ask):
    with pytest.raises(
        PipelineError, match=r"no study 'drwan' has made.*run it first\. Studies there: drawn, real, twin"
    ):
        ask("drwan")


def test_the_command_takes_several_controls():
    options = _parser().parse_args(["table", "smoke", "--beside", "a", "--beside", "b"])
    assert (options.run, options.beside) == (table, ["a", "b"])
