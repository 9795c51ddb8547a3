"""The comparison with other packages: we agree where they are right, their defects are those the page tells of."""

import importlib
import json
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    """The benchmark, which is run from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "benchmarks"))
        yield importlib.import_module("evaluation_peers")
    for name in ("evaluation_peers", "conformance"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def result(script):
    return json.loads(script.RESULT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(result):
    return {name: package["figures"] for name, package in result["packages"].items()}


def test_the_page_shows_the_result_of_the_versions_pinned(script, result):
    assert script.render(result) in script.PAGE.read_text(encoding="utf-8")
    versions = {name: package["version"] for name, package in result["packages"].items() if name != script.OURS}
    assert versions == {"sae-lens": script.PEERS["sae-lens"].version, "sae-bench": script.SAE_BENCH}


def test_ours_are_the_same_now(script, figures, tmp_path):
    now = script.say(Path(sys.executable), "fixture.py", str(tmp_path))
    assert now == pytest.approx(figures[script.OURS], rel=1e-5, abs=1e-9)


def test_we_agree_where_others_are_right(script, figures):
    ours = figures[script.OURS]
    for name, wrong in (("sae-lens", set()), ("sae-bench", {"explained_variance"})):
        found = {figure for figure in script.AGREEMENT if not script.agrees(figures[name][figure], ours[figure], 1e-5)}
        assert found == wrong, name
    lens = figures["sae-lens"]
    for figure in ("mse", "mse_in_small_batches", "kl_confident"):
        assert lens[figure] == pytest.approx(ours[figure], rel=1e-5)
    assert (ours["explained_variance_of_the_mean"], lens["explained_variance_of_the_mean"]) == pytest.approx(
        (0, 0), abs=1e-5
    )


def test_known_defects_are_reproduced(script, figures):
    ours, bench = figures[script.OURS], figures["sae-bench"]
    assert bench["explained_variance_of_the_mean"] > 0.9
    assert ours["mse"] / bench["mse"] == pytest.approx(768, rel=1e-5)  # the rows of a batch
    assert bench["mse_in_small_batches"] / bench["mse"] == pytest.approx(8, rel=1e-5)
    assert bench["kl_confident"] is None
    assert bench["probe_test"] - bench["probe_fresh"] > 0.04
    assert abs(ours["probe_test"] - 0.5) < 0.02 and abs(bench["probe_fresh"] - 0.5) < 0.01


def test_a_difference_and_nothing_to_show_look_so(script, result):
    assert script.shown(result, "sae-bench", "explained_variance").startswith("**0.98")
    assert script.shown(result, "sae-bench", "kl_confident") == "**NaN**"
    assert script.shown(result, "sae-lens", "probe_test") == "—"
    assert script.shown(result, "sae-lens", "l0") == "8"
