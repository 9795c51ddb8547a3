"""Metrics that read codes alone, backfilled over all autoencoders of a study from which the subject is kept away."""

import json
import os
import subprocess
import sys

import pytest

from tests.pipeline.backfilled import KILLED_IN, METRICS, PUBLISHED_FIRST, forbid_the_subject
from tests.pipeline.conftest import CHECKOUT


@pytest.fixture
def trials(bench, tmp_path):
    """A backfill of all these metrics that is killed half-way through one; the same again; and once more."""
    bench.forget("eval_density")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SAE_", "DAGSTER"))}
    run = [sys.executable, "-W", "ignore", "-m", "tests.pipeline.backfilled", str(tmp_path)]
    subprocess.run(run, cwd=CHECKOUT, env=environment, check=True)
    return json.loads((tmp_path / "record.json").read_text())


def of_metric(trial, name):
    return {folder: seal for folder, seal in trial["state"]["published"].items() if f"/{name}-" in folder}


def test_it_goes_on_where_it_was_killed_then_does_nothing_and_never_loads_the_subject(trials, bench):
    killed, resumed, again = trials
    keys = len(bench.graph.workspace.lineage.of_asset("autoencoder"))
    assert killed["fired"]["asset"] == f"eval_{KILLED_IN}"
    assert len(of_metric(killed, KILLED_IN)) == PUBLISHED_FIRST < keys

    assert resumed["status"] == 0, resumed["log"]
    assert f"eval_{KILLED_IN}: {keys - PUBLISHED_FIRST} partitions, done" in resumed["log"]
    for name in METRICS:
        before, after = of_metric(killed, name), of_metric(resumed, name)
        assert len(after) == keys and after | before == after, f"{name} is missing, or was made twice"

    assert again["status"] == 0, again["log"]
    assert [line for line in again["log"].splitlines() if "partitions" in line] == [
        f"eval_{name}: 0 partitions, done" for name in METRICS
    ]
    assert again["state"] == resumed["state"]


def test_the_subject_is_kept_away(monkeypatch):
    """Loading it fails, by whichever door."""
    import transformers

    from resources import SubjectResource
    from sae_pipeline import subjects
    from sae_pipeline.subjects import subject

    doors = [(SubjectResource, "get"), (subjects, "load_subject"), (subject, "load_subject")]
    doors.append((transformers.PreTrainedModel, "from_pretrained"))
    for owner, name in doors:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    forbid_the_subject()
    for owner, name in doors:
        with pytest.raises(AssertionError, match="the subject was loaded"):
            getattr(owner, name)()
