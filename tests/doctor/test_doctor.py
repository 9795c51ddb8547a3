"""The doctor names what is wrong, on machines made wrong for it."""

import http.server
import importlib.metadata
import json
import sys
import threading
from pathlib import Path

import pytest

from sae_pipeline.doctor import folders, machine, packages, reach
from sae_pipeline.doctor.check import Check, examine
from sae_pipeline.store import atomic
from sae_pipeline.store.garbage import PROBE
from sae_pipeline.study import load_study

CHECKOUT = Path(__file__).parents[2]


def levels(checks):
    return [(check.level, check.name) for check in checks]


def only(checks):
    [check] = list(checks)
    return check


def test_a_check_that_breaks_is_a_finding():
    def broken():
        yield Check("first", "ok", "fine")
        raise ZeroDivisionError("by nought")

    found = list(examine([("sums", broken), ("next", lambda: [Check("next", "ok", "fine")])]))
    assert levels(found) == [("ok", "first"), ("fail", "sums"), ("ok", "next")]
    assert "ZeroDivisionError: by nought" in found[1].found


def test_advice_stands_below_the_finding():
    text = str(Check("disk", "warn", "1 GB free", "make room"))
    assert text.splitlines()[0].split() == ["warn", "disk", "1", "GB", "free"]
    assert text.splitlines()[1].strip() == "→ make room"


@pytest.fixture
def project(tmp_path):
    """A checkout that asks for packages which are there in the right version, in another, and not at all."""
    dependencies = ["numpy>=1", "pandas<0.1", "no-such-package-anywhere>=2"]
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nrequires-python = ">=99"\ndependencies = {json.dumps(dependencies)}\n'
    )
    (tmp_path / "constraints.txt").write_text(f"numpy=={importlib.metadata.version('numpy')}\npandas==0.0.1\nabsent==1")
    return tmp_path


def test_versions_against_the_project(project):
    python = only(packages.python_version(project))
    assert python.level == "fail" and ">=99" in python.found
    old, absent = packages.requirements(project)
    assert old.level == absent.level == "fail"
    assert "pandas" in old.found and "no-such-package-anywhere is not installed" in absent.found
    differing = only(packages.constraints(project))
    assert differing.level == "warn" and "(0.0.1)" in differing.found and "numpy" not in differing.found
    (project / "constraints.txt").unlink()
    assert only(packages.constraints(project)).level == "warn"


def test_versions_of_this_checkout_and_of_an_installed_package(tmp_path):
    for root in (CHECKOUT, tmp_path):  # without a pyproject.toml the package's own metadata is asked
        assert only(packages.python_version(root)).level == "ok"
        assert levels(packages.requirements(root)) == [("ok", "packages")]


def test_dagster_and_its_sisters_are_of_one_release(monkeypatch):
    assert only(packages.dagster_release()).level == "ok"
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9.9" if name == "dagster-graphql" else version(name)
    )
    found = only(packages.dagster_release())
    assert found.level == "fail" and "dagster-graphql 9.9.9" in found.found


def test_publishing_is_tried_out_and_nothing_stays(tmp_path):
    assert only(folders.publishing(tmp_path)).level == "ok"
    assert only(folders.publishing(tmp_path / "not" / "yet")).level == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = only(folders.publishing(tmp_path / "file" / "outputs"))
    assert found.level == "fail" and "--outputs" in found.advice


def test_a_file_system_without_create_if_absent_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "create", atomic.replace)
    found = only(folders.publishing(tmp_path))
    assert found.level == "fail" and "does not fail" in found.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("locks", "says"), [(False, "gets a lock that is held"), (True, "that was given back still holds")]
)
def test_a_file_system_whose_locks_do_not_work_fails(tmp_path, monkeypatch, locks, says):
    assert only(folders.file_locks(tmp_path)).level == "ok"
    monkeypatch.setattr(folders, "_locked_out", lambda path: locks)
    assert says in only(folders.file_locks(tmp_path)).found
    assert list(tmp_path.glob(f"{PROBE}*")) == []


@pytest.mark.parametrize(("free", "level"), [(10**8, "fail"), (10**9, "warn"), (10**11, "ok")])
def test_room_on_the_disk(tmp_path, monkeypatch, free, level):
    usage = folders.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert only(folders.disk(tmp_path / "outputs")).level == level


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [("warn", "dagster home")]),
        ("telemetry: {enabled: [", [("fail", "dagster home")]),
        ("- a list", [("fail", "dagster home")]),
        ("", [("ok", "dagster home"), ("warn", "telemetry")]),
        ("telemetry: {enabled: true}", [("ok", "dagster home"), ("warn", "telemetry")]),
        ("telemetry: {enabled: false}", [("ok", "dagster home"), ("ok", "telemetry")]),
    ],
)
def test_the_settings_of_the_dagster_home(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "dagster.yaml").write_text(text)
    assert levels(folders.dagster_home(tmp_path, {})) == expected


@pytest.mark.parametrize(
    ("flags", "machine_name", "level"),
    [("fpu sse2", "x86_64", "warn"), ("fpu avx2 avx512f amx_bf16", "x86_64", "ok"), ("asimd", "aarch64", "ok")],
)
def test_the_processor(tmp_path, monkeypatch, flags, machine_name, level):
    monkeypatch.setattr(machine.platform, "machine", lambda: machine_name)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    found = only(machine.processor(tmp_path / "cpuinfo"))
    assert found.level == level
    assert all(name in found.found for name in flags.split() if name not in ("fpu", "sse2"))
    assert only(machine.processor(tmp_path / "absent")).level == "ok"


def test_the_memory_of_the_machine_and_of_its_control_group(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    assert "8.19 GB free of 16.4 GB" in only(machine.memory(meminfo, tmp_path)).found
    (tmp_path / "memory.max").write_text("4000000000")
    (tmp_path / "memory.current").write_text("3500000000")
    found = only(machine.memory(meminfo, tmp_path))
    assert found.level == "warn" and "500 MB free of 4 GB" in found.found
    assert only(machine.memory(tmp_path / "absent")).level == "ok"


def test_this_torch_multiplies_float32():
    found = list(machine.torch_devices())
    assert ("ok", "torch") in levels(found) and found[-1].name == "threads"
    assert "float32" in found[0].found


def test_a_torch_that_cannot_be_imported_says_why():
    command = (sys.executable, "-S", "-c", "raise ImportError('libtorch.so: wrong ELF class')")
    found = only(machine.torch_devices(command))
    assert found.level == "fail" and "wrong ELF class" in found.found
    killed = only(machine.torch_devices((sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 4)")))
    assert killed.level == "fail" and "-4" in killed.found


def test_devices_and_threads(monkeypatch):
    seen = {"version": "2.9", "threads": 64, "cuda": None, "devices": {"cpu": ["AVX2", ["float32"]]}}
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    command = (sys.executable, "-S", "-c", f"print({json.dumps(json.dumps(seen))})")
    found = list(machine.torch_devices(command))
    assert levels(found) == [("ok", "torch"), ("warn", "torch"), ("warn", "threads")]
    assert "built without CUDA" in found[1].found and "OMP_NUM_THREADS=8" in found[2].advice
    seen["devices"] = {"cuda:0": ["H100", []]}
    command = (*command[:3], f"print({json.dumps(json.dumps(seen))})")
    assert levels(machine.torch_devices(command))[0] == ("fail", "torch")
    assert machine._threads(1, 8, {"OMP_NUM_THREADS": "1"}).level == "warn"
    assert machine._threads(8, 8, {}).level == "ok"


def test_the_browser(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert only(machine.browser()).level == "warn"
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/opt/chrome" if name == "google-chrome" else None)
    assert "/opt/chrome" in only(machine.browser()).found


class Refuses(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def study(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return load_study(CHECKOUT / "studies" / "gpt2-small.yaml")


def test_a_hub_that_answers_is_reachable(study, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert only(reach.hub(study, CHECKOUT)).level == "ok"
        thread.join()


def test_a_hub_that_does_not_answer(study, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        free_port = server.server_port
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port}")
    found = only(reach.hub(study, CHECKOUT))
    assert found.level == "fail" and study.subject.id in found.found
    local = study.model_copy(update={"corpora": []})
    monkeypatch.setattr(reach, "_in_cache", lambda subject, revision: True)
    assert only(reach.hub(local, CHECKOUT)).level == "warn"
    monkeypatch.setattr(reach.importlib.util, "find_spec", lambda name: None)
    assert levels(reach.hub(study, CHECKOUT)) == [("fail", "hub"), ("fail", "hub")]


def test_a_study_without_the_hub_does_not_ask_it(monkeypatch):
    monkeypatch.setattr(reach, "_unreachable", lambda: pytest.fail("asked"))
    assert list(reach.hub(load_study(CHECKOUT / "studies" / "demo.yaml"), CHECKOUT)) == []
