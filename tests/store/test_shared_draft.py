"""A draft that several share: who may write what, and claims on shards."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from small_artefact import ROWS_XD, fill, open_draft

from sae_pipeline.store import Artefact, Busy, Draft, PipelineError

SIZE: dict[str, Any] = {"shape": ROWS_XD.shape, "dtype": "float16", "shard_rows": 36, "chunk_rows": 12}


def join(path: Path) -> Draft | None:
    return Draft.join(path, stage="activations", key="code.1.mlp_out", identity="0f" * 32, lineage={"from": ["a", 1]})


def shared(path: Path) -> Draft:
    draft = open_draft(path)
    draft.array("acts", **SIZE)
    draft.write_json("harvest.json", {"micro_batch": 8})
    draft.share()
    return draft


def joined(path: Path) -> Draft:
    draft = join(path)
    assert draft is not None
    return draft


def test_nobody_joins_before_it_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert join(path) is None  # and nothing is left behind that could not be opened
    with open_draft(path), pytest.raises(Busy):
        join(path)
    assert join(path) is None
    with shared(path), joined(path) as other, pytest.raises(Busy, match=r"process \d+ is working on it"):
        assert other.read_json("harvest.json") == {"micro_batch": 8}
        open_draft(path)
    with open_draft(path):
        pass


def test_those_who_share_commit_shards_and_change_nothing_else(tmp_path: Path) -> None:
    with shared(tmp_path / "a") as draft, joined(tmp_path / "a") as other:
        for each in (draft, other):
            for change in (
                lambda each=each: each.write_json("harvest.json", {}),
                lambda each=each: each.remove("harvest.json"),
                lambda each=each: each.remove_array("acts"),
                lambda each=each: each.array("index", shape=(90,), dtype="int64", shard_rows=36),
                lambda each=each: each.publish({}),
            ):
                with pytest.raises(PipelineError, match="others may be at work"):
                    change()
        assert draft.array("acts", **SIZE).write_shard(0, ROWS_XD[:36])
        assert not other.array("acts").write_shard(0, ROWS_XD[:36])
        other.update_json("harvest.json", lambda value: value | {"micro_batch": value["micro_batch"] // 2})
        assert draft.read_json("harvest.json") == {"micro_batch": 4}
    with pytest.raises(PipelineError, match="closed"):
        other.claim("acts", 1)


def test_a_claim_is_one_holders_until_it_ends(tmp_path: Path) -> None:
    with shared(tmp_path / "a") as draft:
        other = joined(tmp_path / "a")
        claim = other.claim("acts", 1)
        assert claim is not None
        assert draft.claim("acts", 1) is None and draft.claim("acts", 2) is not None
        with claim:
            assert draft.claim("acts", 1) is None
        assert draft.claim("acts", 1) is not None
        assert other.claim("acts", 1) is None and other.claim("acts", 0) is not None
        other.close()  # or dies
        assert draft.claim("acts", 0, wait=True) is not None
    with open_draft(tmp_path / "a") as alone:
        assert alone.claim("acts", 1) is not None and alone.claim("acts", 1) is not None


def test_nothing_of_the_sharing_is_published(tmp_path: Path) -> None:
    with shared(tmp_path / "a") as draft:
        with draft.claim("acts", 0) or pytest.fail("claimed already"):
            draft.array("acts").write_shard(0, ROWS_XD[:36])
        draft.update_json("harvest.json", lambda value: value)
    with open_draft(tmp_path / "a") as alone:
        fill(alone)
        artefact = alone.publish({})
    assert [path.name for path in artefact.path.iterdir() if path.name.startswith(".")] == [".lock"]
    assert not any("claims" in name or name.startswith(".") for name in artefact.files)
    assert Artefact.open(artefact.path).verify() == []


def test_a_draft_published_in_the_moment_of_sharing_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lets another in between an exclusive lock and a shared one."""
    flock = fcntl.flock

    def overtaken(fd: int, flags: int) -> None:
        if flags == fcntl.LOCK_SH:
            monkeypatch.setattr(fcntl, "flock", flock)
            flock(fd, fcntl.LOCK_UN)
            with open_draft(tmp_path / "a") as other:
                fill(other)
                other.publish({})
        flock(fd, flags)

    draft = open_draft(tmp_path / "a")
    monkeypatch.setattr(fcntl, "flock", overtaken)
    with draft, pytest.raises(PipelineError, match="already published"):
        draft.share()


def test_a_draft_moved_away_in_the_moment_of_sharing_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def overtaken(fd: int, flags: int) -> None:
        (tmp_path / "a").rename(tmp_path / "trash")
        flock(fd, flags)

    draft = open_draft(tmp_path / "a")
    monkeypatch.setattr(fcntl, "flock", overtaken)
    with draft, pytest.raises(PipelineError, match="moved away"):
        draft.share()
    with pytest.raises(PipelineError, match="closed"):
        draft.array("acts", **SIZE)


def test_an_array_is_removed_with_all_that_was_committed_in_it(tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        fill(draft)
        draft.remove_array("acts")
        draft.remove_array("acts")
        anew = draft.array("acts", shape=(40, 6), dtype="float16", shard_rows=20)
        assert not any(anew.is_committed(i) for i in range(anew.n_shards))
        assert draft.array("index").is_committed(0)
