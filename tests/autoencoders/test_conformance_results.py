"""The comparison with other packages: our row agrees, every difference is explained, the page shows the result."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import conformance

RESULT = json.loads(conformance.RESULT.read_text(encoding="utf-8"))
KEYS = [check["key"] for check in RESULT["checks"]]


@pytest.fixture(scope="module")
def now():
    """What the harness finds of this project at present."""
    return conformance.ask(conformance.Path(sys.executable), "ours")


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(conformance.FOLDER))
    import measure

    yield measure
    for name in ("measure", "checks", "references", "scenarios", "notes"):
        sys.modules.pop(name)


def test_we_agree_everywhere_in_what_is_committed_and_now(now):
    assert [check["key"] for check in now["checks"]] == KEYS
    for cells in (RESULT["packages"][conformance.OURS]["cells"], now["cells"]):
        assert list(cells) == KEYS
        assert {cell["verdict"] for cell in cells.values()} == {"agrees"}
        assert max(cell["difference"] for cell in cells.values()) < 1e-12


def test_the_result_is_of_the_versions_pinned():
    found = {name: package["version"] for name, package in RESULT["packages"].items() if name != conformance.OURS}
    assert found == {name: peer.version for name, peer in conformance.PEERS.items()}
    assert all(list(package["cells"]) == KEYS for package in RESULT["packages"].values())


def test_every_difference_is_explained_by_a_reference_so_changed():
    cells = [cell for package in RESULT["packages"].values() for cell in package["cells"].values()]
    assert {cell["verdict"] for cell in cells} == {"agrees", "differs", "not there"}
    for cell in cells:
        if cell["verdict"] == "differs":
            assert cell["explained"] <= RESULT["tolerance"] < cell["difference"] and cell["note"]


def test_an_auxk_without_encoder_gradient_shows():
    cells = RESULT["packages"]["eai-sparsify"]["cells"]
    assert cells["auxk_encoder"]["verdict"] == "differs" and cells["auxk_encoder"]["difference"] == 1.0
    assert cells["auxk_decoder"]["verdict"] == "agrees" == cells["auxk_living"]["verdict"]


def test_the_page_is_what_the_script_renders():
    page = conformance.PAGE.read_text(encoding="utf-8")
    assert conformance.page(page, RESULT) == page
    assert conformance.render(RESULT) in page


def test_the_harness_tells_agreement_from_difference_absence_and_error(harness):
    (check,) = (check for check in harness.CHECKS if check.key == "topk_few")
    right = SimpleNamespace(topk=harness.CHECKS[0].reference)
    wrong = SimpleNamespace(topk=lambda s: check.reference(s, through_zero=True))
    broken = SimpleNamespace(topk=lambda s: 1 / 0)
    known, unknown = harness.Note("why", difference={"through_zero": True}), harness.Note("not this")
    assert harness.cell(check, right, known) == {"verdict": "agrees", "difference": 0.0, "note": ""}
    found = harness.cell(check, wrong, known)
    assert (found["verdict"], found["note"], found["explained"]) == ("differs", "why", 0.0) and found[
        "difference"
    ] > 0.1
    assert harness.cell(check, wrong, unknown)["note"] == "not explained"
    assert harness.cell(check, SimpleNamespace(), unknown)["verdict"] == "not there"
    assert "division by zero" in harness.cell(check, broken, known)["note"]


def test_an_answer_without_a_parameter_is_an_error(harness):
    with pytest.raises(ValueError, match="found"):
        harness.compare({"W_enc": harness.np.ones(2)}, {"W_enc": harness.np.ones(2), "W_dec": harness.np.ones(2)})


def test_without_a_network_the_last_result_is_kept(monkeypatch, capsys):
    def refused(*arguments, **options):
        raise subprocess.CalledProcessError(1, [os.path.join("bin", "python")])

    monkeypatch.setattr(conformance, "install", refused)
    monkeypatch.setattr(conformance, "ask", lambda *_: {"cells": {}, "checks": RESULT["checks"], "tolerance": 1e-5})
    kept = conformance.measure(list(conformance.PEERS), RESULT)["packages"]
    assert {n: p for n, p in kept.items() if n != conformance.OURS} == {
        n: p for n, p in RESULT["packages"].items() if n != conformance.OURS
    }
    assert "sae-lens 6.54.12: python ended with status 1; last result kept" in capsys.readouterr().out
