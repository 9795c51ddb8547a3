"""How a study stands, over planted states of its nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.gates import GATES, gate_file
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.planning.status import CHECKPOINT, LastRun, read_checkpoint_record, study_status
from sae_pipeline.planning.status_table import render_status
from sae_pipeline.store import Draft, Outputs, write_json_atomic
from sae_pipeline.store.locks import FileLock
from sae_pipeline.study import Site, load_study
from sae_pipeline.training import checkpoint

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
AUTOENCODER = f"autoencoder/{SITE}/topk-n128-k4"


class Place:
    """An output folder with the graph of the smoke study, two autoencoders of it."""

    def __init__(self, root: Path) -> None:
        self.outputs = Outputs(root)
        self.pointers = self.outputs.pointers("smoke")
        self.folder = self.outputs.study_dir("smoke")
        self.lineage = self.lineage_with()

    def lineage_with(self, *overrides):
        grids = "autoencoders.grids=[{recipe: topk, n: 128, k: [4, 8]}]"
        study = load_study(CHECKOUT / "studies" / "smoke.yaml", (grids, *overrides))
        sizes = {"n_layers": 4, "d_model": 128, "vocab_size": 4096, "n_params": 10**6, "max_positions": 256}
        return Lineage(
            study,
            Facts(
                subject="s",
                tokenizer="t",
                norm="layernorm",
                widths={SITE: 128},
                sites={"code.3of5.resid_post": SITE},
                corpora={"stdlib": {"content": "c"}},
                split_list={},
                **sizes,
            ),
        )

    def open_draft(self, name):
        node = self.lineage[name]
        path = self.outputs.artefact_dir(node.stage, node.key, node.identity)
        return Draft.open(path, stage=node.stage, key=node.key, identity=node.identity, lineage=dict(node.record))

    def make(self, *names):
        """Publish nodes (default all) and point at them."""
        for name in names or list(self.lineage.nodes):
            with self.open_draft(name) as draft:
                draft.write_bytes("data.bin", bytes(100))
                self.pointers.set(name, draft.publish({}))

    def judge(self, name, *, passed=False, severity="block", identity=None):
        verdict = {"check": "finite", "column": "bad", "value": 7.0, "limit": "= 0", "where": "shard 3"}
        verdict |= {"passed": passed, "severity": severity}
        (self.folder / GATES).mkdir(parents=True, exist_ok=True)
        record = {"node": name, "identity": identity or self.lineage[name].identity, "verdicts": [verdict]}
        write_json_atomic(self.folder / GATES / gate_file(name), record)

    def status(self):
        return study_status(self.lineage, self.outputs, self.pointers)

    def node(self, name):
        return next(node for node in self.status().nodes if node.name == name)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "outputs")


def test_nothing_is_made_at_first(place):
    found = place.status()
    assert not found.current
    assert {node.state for node in found.nodes} == {"never made"}
    assert [node.name for node in found.nodes] == list(place.lineage.nodes)
    assert sum(node.n_bytes for node in found.nodes) == 0
    assert not place.outputs.root.exists()


def test_everything_is_made(place):
    place.make()
    found = place.status()
    assert found.current
    table = found.as_dict()["assets"]
    assert table["autoencoder"]["nodes"] == table["autoencoder"]["current"] == 2
    on_disk = sum(path.stat().st_size for path in (place.outputs.root / "artefacts").rglob("*") if path.is_file())
    assert sum(asset["n_bytes"] for asset in table.values()) == on_disk > 100 * len(place.lineage.nodes)


def test_a_changed_setting_makes_stale(place):
    place.make()
    place.lineage = place.lineage_with("scaling.resamples=7")
    found = place.status()
    assert {node.name for node in found.nodes if node.state == "stale"} == {f"scaling_laws/{SITE}", "report"}
    assert all(node.n_bytes > 100 for node in found.nodes), "the bytes of the version in use count"
    assert "why KEY" in render_status(found)


def test_a_rejected_node_says_why_until_the_study_asks_for_another(place):
    place.make("tokens")
    place.judge(f"activations/{SITE}")
    found = place.node(f"activations/{SITE}")
    assert (found.state, found.reason, found.warnings) == ("rejected", "finite: bad is 7 at shard 3, limit = 0", ())
    assert found.reason in render_status(place.status())
    place.judge(f"activations/{SITE}", identity="0" * 64)
    assert place.node(f"activations/{SITE}").state == "never made"
    place.judge(f"activations/{SITE}", passed=True)
    assert place.node(f"activations/{SITE}").state == "never made"


def test_warnings_do_not_make_a_node_less_current(place):
    place.make()
    place.judge(AUTOENCODER, severity="warn")
    found = place.node(AUTOENCODER)
    assert (found.state, found.warnings) == ("current", ("finite: bad is 7 at shard 3, limit = 0",))
    assert place.status().as_dict()["assets"]["autoencoder"]["warnings"] == 1


def test_a_training_shows_its_checkpoint_while_it_goes_on_and_after_it_stopped(place):
    with place.open_draft(AUTOENCODER) as draft:
        assert place.node(AUTOENCODER).attempt.step is None
        checkpoint.write(draft, {"W": torch.zeros(3, 2)}, {"step": 40, "rows": [{"nmse": 0.5}]})
        found = place.node(AUTOENCODER)
        assert (found.state, found.attempt.pid) == ("in progress", os.getpid())
        assert (found.attempt.step, found.attempt.steps) == (40, 60_000 // 512)
        assert (found.attempt.tokens, found.attempt.of_tokens) == (40 * 512, 60_000 // 512 * 512)
        assert "checkpoint at step 40 of 117  20.5k of 59.9k tokens" in render_status(place.status())
    found = place.node(AUTOENCODER)
    assert (found.state, found.attempt.pid, found.attempt.step) == ("never made", None, 40)
    assert "stopped; the next run goes on" in render_status(place.status())


def test_a_draft_at_work_counts_its_shards_though_an_earlier_attempt_was_rejected(place):
    name = f"activations/{SITE}"
    place.judge(name)
    with place.open_draft(name) as draft:
        array = draft.array("acts", shape=(128, 2), dtype="float16", shard_rows=64)
        array.write_shard(0, torch.zeros(64, 2, dtype=torch.float16).numpy())
        found = place.node(name)
        assert (found.state, found.attempt.shards) == ("in progress", 1)


def test_the_header_is_read_as_training_writes_it(tmp_path):
    assert CHECKPOINT == checkpoint.NAME
    path = tmp_path / CHECKPOINT
    assert read_checkpoint_record(path) is None
    for data in (b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"\x05" + bytes(7) + b"[1,2]"):
        path.write_bytes(data)
        assert read_checkpoint_record(path) is None


def test_best_and_latest(place):
    place.make()
    latest = place.pointers.get(AUTOENCODER)
    entry = {"artefact": "artefacts/autoencoders/older", "history": [{"reason": "it is not surely better"}]}
    write_json_atomic(place.folder / "best.json", {f"{SITE}/topk-n128-k4": entry})
    first, second = place.status().champions
    assert (first.best, first.latest, first.verdict) == ("older", Path(latest).name, "it is not surely better")
    assert second.best is None and second.latest is not None
    text = render_status(place.status())
    assert "best version of 1 of 2 autoencoders known" in text and "not surely better" in text


def test_nothing_is_locked_waited_for_or_written(place):
    """It is asked while every lock is held by others; a wait would never end."""
    place.make("tokens")
    with (
        place.outputs.collecting(),
        FileLock(place.folder / ".current.lock"),
        FileLock(place.outputs.root / place.pointers.get("tokens") / ".lock"),
    ):
        before = {path: path.stat().st_mtime_ns for path in place.outputs.root.rglob("*")}
        assert place.node("tokens").state == "current"
        assert {path: path.stat().st_mtime_ns for path in place.outputs.root.rglob("*")} == before


def test_it_needs_no_torch():
    code = "import sys, sae_pipeline.planning.status_table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "False"


def test_json_and_text_tell_of_the_last_run(place):
    run = LastRun("0123456789", "train", "FAILURE", 0.0, 75.0, "autoencoder: not published\n  topk: diverged")
    found = study_status(place.lineage, place.outputs, place.pointers, run)
    assert json.loads(json.dumps(found.as_dict()))["last_run"]["failure"] == run.failure
    text = render_status(found)
    assert "last run: train failure" in text and "1:15" in text and "topk: diverged" in text
    assert len(text.splitlines()) < 30
