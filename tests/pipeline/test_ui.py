"""The Dagster UI in a real browser, as a person uses it: the graph, Materialize, a backfill, a red gate, Terminate.

Where SAE_SCREENSHOTS names a folder, the pictures of docs/orchestration.md are saved there as ui_*.png.
"""

import json
import re

import pandas as pd
import pytest
import safetensors

from sae_pipeline.training import checkpoint
from tests.pipeline import browser as chrome
from tests.pipeline.poison import BAD, SAYS, plant

pytestmark = pytest.mark.skipif(chrome.missing() is not None, reason=f"the UI in a browser {chrome.missing()}")

GROUPS = {"tokens", "activations", "dataset", "autoencoders", "evaluation", "scaling"}
LONG = "topk-n1024-k4"


@pytest.fixture(scope="module")
def browser():
    with chrome.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def followed(night):
    """The study with its sensor on. For pictures Dagster has seen it whole; the tests do without, it takes minutes."""
    night.daemon.turn_on("sensor", "follow_study")
    night.reset()
    night.wait_for_partitions()
    if chrome.PICTURES:
        backfill = night.daemon.backfill("smoke", list(night.daemon.groups()), None)
        assert night.daemon.backfill_end(backfill) == "COMPLETED_SUCCESS"
    return night


@pytest.fixture
def study(followed):
    """The study as it ships, with its autoencoders as partitions."""
    followed.reset()
    followed.wait_for_partitions()
    return followed


@pytest.fixture
def ui(browser, study):
    ui = chrome.UI(browser, study.daemon.url)
    yield ui
    ui.page.close()


def test_the_graph_shows_the_six_groups_and_what_is_in_them(ui, study):
    ui.open("asset-groups")
    assert ui.folded_groups(len(GROUPS)) == GROUPS
    ui.unfold_graph()
    groups = study.daemon.groups()
    assert set(groups.values()) == GROUPS
    study.daemon.wait("every asset", lambda: len(ui.asset_boxes()) == len(groups))
    frames, assets = ui.group_boxes(), ui.asset_boxes()
    for name, group in groups.items():
        (box,) = (assets[shown] for shown in assets if _shortens(shown, name))
        assert _lies_in(box, frames[group]), f"{name} lies outside {group}"
    if chrome.PICTURES:
        ui.wait_for_green(len(assets))
    ui.picture("ui_graph", height=chrome.HEIGHT, left=0)


def _shortens(shown, name):
    first, dots, last = shown.partition("…")
    return name.startswith(first) and name.endswith(last) if dots else name == shown


def _lies_in(box, frame):
    return all(frame[i] <= box[i] and box[i] + box[i + 2] <= frame[i] + frame[i + 2] for i in (0, 1))


def test_an_autoencoder_is_materialised_by_hand_and_shows_its_plots(ui, study):
    key = "topk-n128-k4"
    study.forget(f"autoencoder/{study.site}/{key}")
    ui.materialise("smoke/autoencoder", key)
    assert ui.run_end() == "Success"
    assert study.work.find(f"autoencoder/{study.site}/{key}") is not None
    ui.open(f"assets/smoke/autoencoder?view=partitions&partition={study.cell(key).replace('|', '%7C')}")
    ui.page.get_by_role("row", name="reused false").wait_for()
    for plot in ("dead", "error"):
        image = ui.open_plot(plot)
        image.wait_for()
        assert chrome.colours_in(image) > 20
        assert image.bounding_box()["width"] > 400
        if plot == "error":
            ui.picture("ui_materialised", height=730)
        ui.close_dialog()


def test_a_backfill_of_all_partitions_is_launched_by_hand_and_watched_to_its_end(ui, study):
    names = [f"eval_density/{study.site}/{key}" for key in ("topk-n128-k8", "topk-n512-k4")]
    study.forget(*names)
    backfill = ui.materialise("smoke/eval_density")
    page = ui.page
    page.get_by_text(re.compile(r"^\d+% completed")).wait_for()
    assert study.daemon.backfill_end(backfill) == "COMPLETED_SUCCESS"
    page.reload()  # sooner than the page asks by itself
    page.get_by_text("100% completed").wait_for()
    page.locator('[data-tooltip="Succeeded"]').wait_for()
    assert all(study.work.find(name) is not None for name in names)
    ui.picture("ui_backfill", height=300)


def test_a_failing_gate_is_red_and_says_why(ui, study):
    """In a backfill, whose runs are over ranges even where they cover one partition."""
    daemon, site = study.daemon, study.site
    plant(study.work, site, "nan")
    backfill = daemon.backfill("smoke", ["activations"], [site])
    runs = daemon.wait("the run", lambda: daemon.runs(**{"dagster/backfill": backfill}))
    try:
        assert daemon.run_end(runs[0]["runId"]) == "FAILURE"
        ui.open("assets/smoke/activations?view=checks&checkDetail=integrity")
        integrity, signatures = (ui.check(name) for name in ("integrity", "signatures"))
        integrity.get_by_text("Failed").wait_for()
        assert chrome.is_red(integrity.locator('[aria-label="cancel"]'))
        assert signatures.get_by_text("Succeeded").is_visible()
        reason = ui.page.get_by_text(f"{SAYS['nan']} is 1 at shard {BAD}")
        assert reason.is_visible()
        ui.picture("ui_failed_gate", height=780)
    finally:
        assert daemon.run_end(daemon.launch("smoke", "activations", site)) == "SUCCESS"
    ui.page.reload()
    ui.check("integrity").get_by_text("Succeeded").wait_for()


def test_a_training_that_is_terminated_goes_on_where_it_stopped(ui, study):
    daemon = study.daemon
    study.add(recipe="topk", n=1024, k=4, tokens="600k")
    study.wait_for_partitions()
    name = f"autoencoder/{study.site}/{LONG}"
    folder = study.work.directory(study.work.lineage[name])
    ui.open(f"runs/{daemon.launch('smoke', 'autoencoder', study.cell(LONG))}")
    confirm = ui.ask_to_terminate()
    daemon.wait("a checkpoint", (folder / checkpoint.NAME).exists)
    confirm.click()
    assert ui.run_end() == "Canceled"
    ui.picture("ui_terminated", height=300)
    assert study.work.find(name) is None
    with safetensors.safe_open(folder / checkpoint.NAME, framework="np") as file:
        rows = json.loads(file.metadata()["record"])["rows"]
    ui.re_execute()
    assert ui.run_end() == "Success"
    log = pd.read_parquet(study.work.find(name).file("training.parquet"))
    assert 0 < len(rows) < len(log)
    # Speed and waiting were measured on the clock: two runs from the start would not agree on them.
    pd.testing.assert_frame_equal(log.head(len(rows)), pd.DataFrame(rows, columns=log.columns))
