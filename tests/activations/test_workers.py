"""Several processes at one artefact, their ranges overlapping, one killed at the worst moment: as if made by one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from activation_doubles import POST, MemoryTokens, config_of, make_tokens, open_draft, tiny_subject
from harvest_process import SHARD_ROWS, place
from test_takeover import OLD_ID, PRE, assert_same, grow, made
from test_takeover import open_draft as open_version

from sae_pipeline.activations import Earlier, Place, harvest, harvest_range, summarise_shards, taken_over
from sae_pipeline.activations.passes import Passes
from sae_pipeline.store import Artefact, Busy, Draft, PipelineError
from sae_pipeline.subjects import Subject

SCRIPT = Path(__file__).with_name("harvest_process.py")


@pytest.fixture(scope="module")
def subject_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    tiny_subject(folder)
    return folder


@pytest.fixture(scope="module")
def alone(subject_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """What one process makes."""
    with open_draft(tmp_path_factory.mktemp("alone") / "a") as draft:
        harvest(tiny_subject(subject_dir), make_tokens(), {POST: draft}, config_of())
        assert draft.array("acts").shard_rows == SHARD_ROWS
        return draft.publish(summarise_shards(draft))


class Worker:
    """A process under the test's control; killed at the end whatever happens."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()


@pytest.mark.parametrize("point", ["pass", "record"])
def test_what_a_killed_worker_was_at_is_made_by_the_other(
    point: str, subject_dir: Path, alone: Artefact, workers: list[Worker], tmp_path: Path
) -> None:
    n, path = alone.array("acts").n_shards, tmp_path / "shared"
    assert n >= 7
    workers += [Worker(subject_dir, path, 0, 5, point, 3), Worker(subject_dir, path, 2, n - 1, "nowhere", 0)]
    doomed, other = workers
    assert (doomed.says(), other.says()) == ("ready", "ready")
    doomed.go()
    assert doomed.says() == "stuck"
    other.go()
    assert other.says() == "waits"  # everything else of its range is made
    with pytest.raises(Busy):
        open_draft(path)
    doomed.kill()
    answers = [other.says()]
    while answers[-1] == "waits":  # behind a stuck writer the next shards were claimed too
        answers.append(other.says())
    committed = [(path / "commits" / "acts" / f"{i}.json").exists() for i in range(n)]
    assert committed == [True] * (n - 1) + [False]
    assert int(answers[-1]) == n - 1 - 3, "shards 0 to 2 were the other's; nothing is made twice"
    with open_draft(path) as draft:
        harvest(tiny_subject(subject_dir), make_tokens(), {POST: draft}, config_of())
        together = draft.publish(summarise_shards(draft))
    assert_same(together, alone)
    assert together.files == alone.files and together.summary == alone.summary and together.verify() == []
    assert [file.name for file in path.iterdir() if file.name.startswith(".")] == [".lock"]


def test_a_worker_alone_makes_its_range_and_a_second_one_nothing(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    where = {POST: place(tmp_path / "a")}
    assert harvest_range(subject, tokens, where, config_of(), shards=range(2, 5)) == 3
    assert harvest_range(subject, tokens, where, config_of(), shards=range(1, 4)) == 1
    with open_draft(tmp_path / "a") as draft:
        array = draft.array("acts")
        assert [array.is_committed(i) for i in range(6)] == [False, True, True, True, True, False]
        assert draft.read_json("harvest.json") == {"micro_batch": 5}


def test_sites_that_another_is_at_are_left_to_it(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While shard 2 of one site is claimed, the other site's is made; the first follows once the claim has ended."""
    where = {POST: place(tmp_path / "post"), PRE: place(tmp_path / "pre")}
    assert harvest_range(subject, tokens, where, config_of(), shards=range(1)) == 1
    held = Draft.join(**vars(where[POST]))
    assert held is not None
    claim = held.claim("acts", 2)
    passes: list[tuple[int, tuple[object, ...]]] = []
    rows = Passes.rows

    def watched(self: Passes, wanted: slice, sites: list[object], advance: object) -> object:
        passes.append((wanted.start // SHARD_ROWS, tuple(sites)))
        return rows(self, wanted, sites, advance)  # type: ignore[arg-type]

    class Other:
        """Dies as soon as it is waited for."""

        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            if info.get("waits_for") == 2:
                held.close()

    monkeypatch.setattr(Passes, "rows", watched)
    assert claim is not None
    assert harvest_range(subject, tokens, where, config_of(), shards=range(1, 4), progress=Other()) == 4
    assert passes == [(1, (POST, PRE)), (2, (PRE,)), (3, (POST, PRE)), (2, (POST,))]


def test_workers_take_over_what_an_earlier_version_holds(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    old, new_tokens = made(tmp_path / "old", subject, tokens, OLD_ID), grow(tokens)
    kept = old.array("acts").n_shards - 1
    with open_version(tmp_path / "new") as draft:
        where = Place(draft.path, draft.stage, draft.key, draft.identity, draft.lineage)
    earlier = {POST: Earlier(old, tokens)}
    assert harvest_range(subject, new_tokens, {POST: where}, config_of(), shards=range(2), earlier=earlier) == 0
    assert harvest_range(subject, new_tokens, {POST: where}, config_of(), earlier=earlier) > 0
    with open_version(tmp_path / "new") as draft:
        assert taken_over(draft) == {OLD_ID: list(range(kept))}
        assert_same(draft.publish({}), made(tmp_path / "full", subject, new_tokens))


def test_what_is_published_needs_no_worker(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of())
        draft.publish({})
    with pytest.raises(PipelineError, match="already published"):
        harvest_range(subject, tokens, {POST: place(tmp_path / "a")}, config_of())
