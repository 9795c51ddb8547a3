"""`sae-pipeline verify` and `sae-pipeline repair` on a study whose data stages have run."""

import json

import pytest

from assets.activations import ACTIVATIONS
from assets.dataset import DATASET
from assets.tokens import TOKENS
from sae_pipeline.store import Artefact
from sae_pipeline.store.locks import FileLock
from tests.pipeline.front_door import assert_refused, enter
from tests.pipeline.harvested import SITE


@pytest.fixture
def ask(harvested, capsys):
    """Enter a command; exit status, what was printed, what was said on stderr."""

    def call(command, *arguments):
        capsys.readouterr()
        status = enter([command, *arguments, "--outputs", str(harvested.world.outputs)])
        return (status, *capsys.readouterr())

    return call


def flip(path, position=100):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(bytes(data))


def shard(harvested, i):
    return harvested.activations.array("acts").shard_path(i)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_whole_study(harvested, ask):
    before = contents(harvested.world.outputs)
    status, text, progress = ask("verify")
    assert status == 0 and "4 artefacts" in text and "all is whole" in text
    assert "100.0 %" in progress and "B/s" in progress
    assert ask("verify", "tiny")[1].startswith("3 artefacts")
    assert ask("verify", str(harvested.world.study))[1].startswith("3 artefacts")
    assert json.loads(ask("verify", "--json")[1])["whole"] is True
    status, text, _ = ask("repair", str(harvested.world.study))
    assert status == 0 and text == "nothing damaged is left\n"
    assert contents(harvested.world.outputs) == before


def test_damage_is_named_and_mended(harvested, ask):
    before = contents(harvested.world.outputs)
    folder = harvested.activations.path.relative_to(harvested.world.outputs)
    flip(shard(harvested, 1))
    shard(harvested, 3).write_bytes(shard(harvested, 3).read_bytes()[:99])
    status, text, _ = ask("verify", "tiny")
    assert status == 1 and f"changed: {folder}/acts/c/1/0: 1 of its" in text
    assert f"cut short: {folder}/acts/c/3/0: has 99 bytes" in text and "sae-pipeline repair tiny" in text
    found = json.loads(ask("verify", "--json")[1])
    assert found["whole"] is False
    assert [(item["artefact"], item["file"], item["kind"]) for item in found["damage"]] == [
        (str(folder), "acts/c/1/0", "changed"),
        (str(folder), "acts/c/3/0", "cut short"),
    ]
    status, text, _ = ask("repair", str(harvested.world.study))
    assert status == 0 and text.count("put back: ") == 2 and text.endswith("nothing damaged is left\n")
    after = contents(harvested.world.outputs)
    assert {name: data for name, data in after.items() if "/.collect.lock" not in f"/{name}"} == {
        name: data for name, data in before.items() if "/.collect.lock" not in f"/{name}"
    }


def test_a_remade_shard_is_shown_everywhere(harvested, ask, monkeypatch):
    from sae_pipeline import subjects

    flip(shard(harvested, 1))
    load = subjects.load_subject

    def elsewhere(*arguments, **options):
        subject = load(*arguments, **options)
        for name, parameter in subject._model.named_parameters():
            if name.endswith("mlp.c_proj.weight"):
                parameter.data *= 1 + elsewhere.factor
        return subject

    monkeypatch.setattr(subjects, "load_subject", elsewhere)
    elsewhere.factor = 0.05
    before = contents(harvested.activations.path)
    status, text, _ = ask("repair", str(harvested.world.study))
    assert status == 1 and "refused: " in text and "differ by up to" in text and "1 damaged folders are left" in text
    assert contents(harvested.activations.path) == before
    assert "cannot be mended in place (acts/c/1/0)" in text
    elsewhere.factor = 1e-6
    record = harvested.activations.array("acts").commit_path(2)
    record.rename(harvested.world.folder / "record")
    status, text, _ = ask("repair", str(harvested.world.study))
    assert status == 1 and "remade: " in text and "cannot be mended in place (commits/acts/2.json)" in text
    (harvested.world.folder / "record").rename(record)
    status, text, _ = ask("verify")
    assert status == 0 and "shard 1 of acts: differs by up to" in text
    (remade,) = json.loads(ask("verify", "--json")[1])["remade"]
    assert remade["shard"] == 1 and remade["tolerance"] == pytest.approx(1e-4, rel=0.01)
    assert f"activations/{SITE}  1 shards" in ask("status", str(harvested.world.study))[1]
    assert "repairs/acts/1.json" in contents(harvested.activations.path)


def test_what_cannot_be_mended_is_discarded_if_told_to(harvested, ask):
    tokens, dataset = harvested.tokens, harvested.work.artefact(f"dataset/{SITE}")
    flip(dataset.path / "statistics.json")
    flip(tokens.path / "documents.parquet")
    made = contents(tokens.path)
    status, text, _ = ask("repair", str(harvested.world.study))
    assert status == 1 and text.count("cannot be mended in place") == 2 and "--discard" in text
    assert f"made from it, and without it of use only where it is not read: artefacts/activations/{SITE}" in text
    assert contents(tokens.path) == made
    status, text, _ = ask("repair", str(harvested.world.study), "--discard")
    assert status == 0 and text.count("moved to artefacts/") == 2
    assert not tokens.path.exists() and not dataset.path.exists()
    assert len(list((tokens.path.parent / ".trash").iterdir())) == 1
    assert ask("verify", "tiny")[0] == 1  # pointers to what is to be made
    harvested.make(TOKENS, ACTIVATIONS, DATASET)
    assert ask("verify", "tiny")[0] == 0
    assert Artefact.open(dataset.path).identity == dataset.identity


def test_shards_wait_for_the_tokens_that_they_are_made_from(harvested, ask):
    flip(shard(harvested, 1))
    flip(harvested.tokens.path / "documents.parquet")
    kept = contents(harvested.activations.path)
    status, _, said = ask("repair", str(harvested.world.study), "--discard")
    assert status == 1 and "the tokens it was made from are damaged or gone" in said
    harvested.make(TOKENS)
    assert contents(harvested.activations.path) == kept
    assert ask("repair", str(harvested.world.study))[0] == 0


def test_what_another_study_asks_for_is_not_made_from_this_one(harvested, ask):
    flip(shard(harvested, 1))
    asked = ("repair", str(harvested.world.study), "--set", "activations.dtype=float16")
    status, _, said = ask(*asked)
    assert status == 1 and "study tiny asks for other activations now" in said


def test_foreign_files_are_left_to_whoever_put_them_there(harvested, ask):
    (harvested.tokens.path / "notes.txt").write_text("mine")
    status, text, _ = ask("repair", str(harvested.world.study), "--discard")
    assert status == 1 and "notes.txt: move it away by hand" in text
    assert harvested.tokens.exists("notes.txt") is False and (harvested.tokens.path / "notes.txt").exists()


def test_what_somebody_is_at_work_on_stays(harvested, ask):
    folder = harvested.tokens.path
    flip(folder / "documents.parquet")
    with FileLock(folder / ".lock"):
        assert ask("verify", "tiny")[0] == 1
        status, _, said = ask("repair", str(harvested.world.study), "--discard")
        assert status == 1 and "is working on it" in said and folder.exists()
    assert ask("repair", str(harvested.world.study), "--discard")[0] == 0


def test_what_has_no_results_is_refused(harvested, capsys):
    outputs = ["--outputs", str(harvested.world.outputs)]
    for argv in (["verify", str(harvested.world.study)], ["repair", str(harvested.world.study)]):
        argv = [*argv, "--set", "study=other", *outputs]
        assert_refused(harvested.world, capsys, argv, names="'other' has no results", says="sae-pipeline run")
    assert_refused(harvested.world, capsys, ["verify", "nothing", *outputs], names="nothing", says="studies")


def test_help_says_what_the_exit_status_means(capsys):
    for command in ("verify", "repair"):
        assert enter([command, "--help"]) == 0
        assert "Exit status: 0" in " ".join(capsys.readouterr().out.split())
