"""A small good study, and what must hold when it is spoilt: refused through `sae-pipeline` itself, nothing changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from sae_pipeline import cli
from sae_pipeline.store import Draft, Pointers

UNREADABLE = "/proc/self/mem"
"""Opens like any file, and fails when it is read; for root too."""

STUDY = """\
study: tiny
subject: {alias: tiny, id: FOLDER/model, dtype: float32, device: cpu}
corpora:
  - {name: words, source: FOLDER/corpus}
tokens: {context: 16, train: 2000, held_out: 400}
sites:
  tiny.1.resid_post: {}
activations: {dtype: float32, shard_tokens: 256}
dataset: {resident_shards: 2}
autoencoders:
  defaults:
    batch: 64
    tokens: 2000
    schedule: {warmup: 2}
    dead_after_tokens: 500
  grids:
    - {recipe: topk, n: [16, 32], k: [4]}
evaluation:
  tokens: 300
  bootstrap: {resamples: 20}
scaling: {hold_out: none}
"""


@dataclass(frozen=True)
class World:
    """A folder with the study, its subject and corpus, and outputs in which something was made before."""

    folder: Path

    @property
    def study(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def run(self, *settings: str) -> list[str]:
        """Arguments that run the study with some values changed."""
        changes = [part for setting in settings for part in ("--set", setting)]
        return ["run", str(self.study), "--outputs", str(self.outputs), *changes]

    def snapshot(self) -> dict[str, bytes | str]:
        """Every path below the folder with its bytes; links by their target."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            kind = f"link to {os.readlink(path)}" if path.is_symlink() else "folder" if path.is_dir() else ""
            kind = kind or ("" if os.access(path, os.R_OK) else "not ours to read")
            found[str(path.relative_to(self.folder))] = kind or path.read_bytes()
        return found


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good world, to be copied; paths in its study are written on copying."""
    from tests.subjects.tiny_subjects import save_subject  # loads torch

    folder = tmp_path_factory.mktemp("good")
    save_subject(folder / "model", "gpt2")
    generator = np.random.default_rng(0)
    (folder / "corpus").mkdir()
    for name in range(8):
        words = " ".join(f"w{i}" for i in generator.integers(90, size=200))
        (folder / "corpus" / f"{name}.txt").write_text(words)
    earlier = folder / "outputs" / "artefacts" / "dataset" / "earlier-0123456789ab"
    with Draft.open(earlier, stage="dataset", key="earlier", identity="0123456789ab" + "0" * 52, lineage={}) as draft:
        draft.write_json("normaliser.json", {"name": "none"})
        artefact = draft.publish({})
    Pointers(folder / "outputs", "tiny").set("dataset/tiny.0.resid_pre", artefact)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Dagster home in which no run may ever be recorded."""
    folder = tmp_path_factory.mktemp("home")
    yield folder
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert instance.get_runs_count() == 0


@pytest.fixture
def world(template: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of one's own to spoil, and an environment that knows of nothing else."""
    for name in ("SAE_STUDY", "SAE_SET", "SAE_OUTPUTS"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    world = World(Path(shutil.copytree(template, tmp_path / "world")))
    world.study.write_text(STUDY.replace("FOLDER", str(world.folder)))
    return world


def enter(argv: list[str]) -> int:
    """Call the command line as a shell would; returns the exit status, argparse's own included."""
    try:
        return cli.main(argv)
    except SystemExit as error:
        return int(error.code or 0)


def assert_refused(
    world: World,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    *,
    names: str,
    says: str,
    status: int = 1,
) -> None:
    """Refused with a message that names what is wrong and says what to do, no stage begun and no byte changed."""
    before = world.snapshot()
    found = enter(argv)
    message = capsys.readouterr().err
    assert found == status, message
    assert names in message, message
    assert says in message, message
    assert "Traceback" not in message and "── " not in message, message
    assert world.snapshot() == before
