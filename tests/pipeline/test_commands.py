"""`status`, `doctor` and `gc` from the command line, on a copy of the finished smoke study."""

import json
import os
import shutil
import subprocess
import sys

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from assets.history import daemon, last_run
from sae_pipeline import cli, dataset
from sae_pipeline.store import Draft, write_json_atomic
from tests.pipeline.conftest import CHECKOUT


@pytest.fixture
def ask(bench, monkeypatch, capsys):
    """Call the command line on the bench; returns exit status, what was printed, and what was said on stderr."""
    for name in ("SAE_STUDY", "SAE_SET", "SAE_OUTPUTS"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    assert os.environ["DAGSTER_HOME"] == bench.instance.root_directory

    def call(*arguments):
        capsys.readouterr()
        status = cli.main([*arguments, "--outputs", str(bench.graph.outputs_dir)])
        return (status, *capsys.readouterr())

    return call


def folders(bench):
    return {path for path in bench.graph.outputs_dir.glob("artefacts/[!.]*/[!.]*")}


def drop_pointers(bench, *names):
    path = bench.graph.outputs_dir / "smoke" / "current.json"
    pointers = json.loads(path.read_text())
    write_json_atomic(path, {name: where for name, where in pointers.items() if name.split("/")[0] not in names})


def open_draft(bench, name):
    work = bench.graph.workspace
    node = work.lineage[name]
    lineage = dict(node.record)
    return Draft.open(work.directory(node), stage=node.stage, key=node.key, identity=node.identity, lineage=lineage)


def test_status_of_a_finished_study(bench, ask):
    status, text, _ = ask("status", "smoke")
    assert status == 0
    assert "best version of 7 of 7 autoencoders known; each is the latest" in text
    status, text, _ = ask("status", "smoke", "--json")
    found = json.loads(text)
    assert status == 0 and found["current"] is True
    assert found["assets"]["autoencoder"] == {**found["assets"]["codes"], **found["assets"]["autoencoder"]}
    assert found["assets"]["autoencoder"]["current"] == len(found["autoencoders"]) == 7


def test_status_after_a_change_and_of_a_run_that_fails(bench, ask, monkeypatch):
    status, text, _ = ask("status", "smoke", "--set", "scaling.resamples=49", "--json")
    assert status == 3
    assert {node["name"].split("/")[0] for node in json.loads(text)["nodes"] if node["state"] == "stale"} == {
        "scaling_laws",
        "report",
    }
    monkeypatch.delenv("SAE_SET")
    merge = dataset.build.merge_moments
    seen = []

    def spoiled(acts, n_rows):
        """Look at the study from inside its run, then break the channel that the gate looks for."""
        seen.append(json.loads(ask("status", "smoke", "--json")[1]))
        moments = merge(acts, n_rows)
        moments.m2[5] = 0.0
        return moments

    monkeypatch.setattr(dataset.build, "merge_moments", spoiled)
    bench.forget("dataset")
    assert bench.run() is not None
    [during] = [node for node in seen[0]["nodes"] if node["name"].startswith("dataset/")]
    assert during["state"] == "in progress" and during["attempt"]["pid"] == os.getpid()
    assert seen[0]["last_run"]["outcome"] == "STARTED"
    status, text, _ = ask("status", "smoke")
    assert status == 3
    assert "rejected at the gate" in text and "no channel is constant" in text
    assert "last run: build_dataset failure" in text and "not published" in text


def test_the_table_of_a_study(bench, ask):
    status, text, _ = ask("table", "smoke")
    assert status == 0
    assert text.splitlines()[0] == bench.graph.sites[0] and "ΔCE" in text and text.count("topk-n") == 6
    status, text, _ = ask("table", "smoke", "--metric", "nmse")
    assert status == 0 and text.count("without_position_0") == 7 and "document" in text
    status, _, error = ask("table", "smoke", "--metric", "nmsee")
    assert status == 1 and "there are ce, compute_share, cosine" in error


def test_comparing_two_autoencoders(bench, ask):
    status, text, _ = ask("compare", "topk-n512-k8", "topk-n128-k4", "--study", "smoke")
    assert status == 0 and "a = topk-n512-k8" in text
    (nmse,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["nmse"] and len(line.split()) == 9]
    assert nmse[-1] == "a" and float(nmse[3]) < 0
    status, _, error = ask("compare", "topk-n512-k8", "topk-n9", "--study", "smoke")
    assert status == 1 and "there is no autoencoder 'topk-n9'" in error


def test_the_last_run_is_that_of_the_study(smoke):
    found = last_run(smoke.instance, smoke.graph)
    assert (found.job, found.outcome, found.failure) == ("fit", "SUCCESS", None)
    assert found.ended_s >= found.started_s
    assert last_run(smoke.instance, smoke.with_settings("study=another").graph) is None


def test_a_job_launched_as_a_whole_is_known_by_what_it_planned(bench):
    @dg.asset(key=["smoke", "thing"])
    def thing():
        raise ValueError("broken on purpose")

    job = dg.Definitions(assets=[thing], jobs=[dg.define_asset_job("whole")]).resolve_job_def("whole")
    job.execute_in_process(instance=bench.instance, raise_on_error=False)
    found = last_run(bench.instance, bench.graph)
    assert (found.job, found.outcome) == ("whole", "FAILURE") and "broken on purpose" in found.failure


def test_gc_lists_first_and_deletes_when_told_and_a_run_makes_it_again(bench, ask):
    before = folders(bench)
    assert ask("gc", "--older-than", "0")[:2] == (0, "nothing to delete\n")
    drop_pointers(bench, "report", "scaling_laws")
    status, text, _ = ask("gc")
    assert status == 0 and "younger than 1d" in text and "nothing to delete" in text
    status, text, _ = ask("gc", "--older-than", "0")
    assert status == 0 and "artefacts/report/smoke-" in text and "--delete deletes it" in text
    assert folders(bench) == before
    status, text, _ = ask("gc", "--older-than", "0", "--delete")
    assert status == 0 and "2 folders and files" in text
    assert {path.parent.name for path in before - folders(bench)} == {"report", "scaling"}
    assert ask("status", "smoke")[0] == 3
    assert bench.run() is None
    assert folders(bench) == before
    assert ask("status", "smoke")[0] == 0


def test_gc_keeps_unfinished_drafts_that_a_study_asks_for(bench, ask, monkeypatch):
    changed, settings = bench.with_settings("dataset.sample_rows=2048"), ("--set", "dataset.sample_rows=2048")
    name = f"dataset/{bench.graph.sites[0]}"
    with open_draft(changed, name) as draft:
        status, text, _ = ask("gc", "--older-than", "0", "--drafts", "--delete")
        assert status == 0 and "1 that a process is at work on" in text
    status, text, _ = ask("gc", "smoke", *settings, "--older-than", "0", "--delete")
    assert status == 0 and "1 unfinished that a study asks for" in text and draft.path.is_dir()
    monkeypatch.delenv("SAE_SET")

    other = bench.graph.outputs_dir / "other" / "current.json"
    other.parent.mkdir()
    other.write_text("{}\n")
    _, text, said = ask("gc", "--older-than", "0", "--delete")
    assert "not known what other asks for" in said and "1 unfinished" in text and draft.path.is_dir()
    shutil.rmtree(other.parent)

    _, text, _ = ask("gc", "--older-than", "0")
    assert "no study asks for it" in text and draft.path.is_dir(), "studies/smoke.yaml has another number of rows"
    status, text, _ = ask("gc", "smoke", *settings, "--older-than", "0", "--drafts", "--delete")
    assert status == 0 and not draft.path.exists()
    assert ask("status", "smoke", "--set", "dataset.sample_rows=4096")[0] == 0


@pytest.mark.parametrize("given", [("--older-than", "soon"), ("no-such-study", "--older-than", "0")])
def test_gc_says_what_it_does_not_understand(bench, ask, given):
    open_draft(bench.with_settings("dataset.sample_rows=2048"), f"dataset/{bench.graph.sites[0]}").close()
    status, _, said = ask("gc", *given)
    assert status == 1 and said.startswith("error: ")


def test_gc_deletes_nothing_where_pointers_cannot_be_read(bench, ask):
    before = folders(bench)
    (bench.graph.outputs_dir / "smoke" / "current.json").write_text("{")
    status, _, said = ask("gc", "--older-than", "0", "--delete")
    assert status == 1 and "current.json" in said
    assert folders(bench) == before


def test_the_doctor(bench, ask):
    status, text, _ = ask("doctor", "demo")
    assert status == 0, text
    assert {line.split()[0] for line in text.splitlines()[:-1] if not line.startswith(" ")} <= {"ok", "warn"}
    assert f"{bench.graph.outputs_dir}: create-if-absent" in text
    assert not list(bench.graph.outputs_dir.glob(".doctor-*"))


def test_the_doctor_on_a_spoiled_place(bench, ask, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dagster.yaml").write_text("telemetry: [")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "broken"))
    status, text, _ = ask("doctor", "no-such-study")
    assert status == 1
    failed = [line.split()[1] for line in text.splitlines() if line.startswith("fail")]
    assert failed == ["dagster", "daemon", "no-such-study"]
    assert text.splitlines()[-1].startswith("3 failed")


@pytest.mark.parametrize("missing", ["zarr", "packaging"])
def test_the_doctor_works_where_a_package_is_missing(tmp_path, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from sae_pipeline import cli; sys.exit(cli.main(['doctor']))"
    environment = os.environ | {"SAE_OUTPUTS": str(tmp_path / "outputs"), "DAGSTER_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, env=environment)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 1
    assert f"a package is missing: {'import of' if missing != 'packaging' else 'No module'}" in done.stdout


def test_the_doctor_finds_a_daemon(bench, tmp_path):
    def beat(moment_s, errors=()):
        bench.instance.add_daemon_heartbeat(DaemonHeartbeat(moment_s, "SENSOR", "id", list(errors)))
        [check] = daemon(bench.instance, now_s=10_000.0)
        return check.level, check.found

    assert "none has been at work" in next(iter(daemon(bench.instance))).found
    assert beat(9_990.0) == ("ok", "at work on this home; stop it before another `make ui` is started")
    assert "2.78 h ago" in beat(0.0)[1]
    from dagster_shared.error import SerializableErrorInfo

    level, found = beat(9_990.0, [SerializableErrorInfo("out of memory", [], None)])
    assert level == "warn" and "out of memory" in found


def test_the_command_line_as_a_module():
    command = [sys.executable, "-m", "sae_pipeline.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert all(name in done.stdout for name in ("status", "doctor", "gc"))
