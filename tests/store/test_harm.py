"""A sample of `make soak`: every kind of harm to a file is named, and killed writers lose nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.store import harm


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a fork must not wait for threads that it has not


@pytest.mark.parametrize("kind", harm.HARMS)
def test_harm_to_a_shard_is_named_and_undone(tmp_path: Path, kind: str) -> None:
    harm.finish(tmp_path)
    shards = sorted((tmp_path / "acts" / "acts" / "c").glob("*/0"))
    drawn, seen = random.Random(kind), 0
    before = [path.read_bytes() for path in shards]
    for _ in range(25):
        path, other = drawn.sample(shards, 2)
        with harm.harmed(kind, path, other, drawn) as files:
            assert harm.error_path(tmp_path / "acts") in files
            seen += [shard.read_bytes() if shard.exists() else b"" for shard in shards] != before
    assert seen == 25
    assert harm.error_path(tmp_path / "acts") is None and list(harm.harm_done(tmp_path)) == []


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    found = harm.kill_writers(tmp_path, seed=1, trials=12)
    assert found["failures"] == []
    assert found["deaths"] == 12 and len(found["by_call"]) >= 3


def test_a_lost_row_would_be_seen(tmp_path: Path) -> None:
    harm.finish(tmp_path)
    shard = tmp_path / "acts" / "acts" / "c" / "3" / "0"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert len([line for line in harm.harm_done(tmp_path) if "shard 3" in line]) == 1
    assert [line for line in harm.harm_done(tmp_path) if line.startswith("acts: 0:")]
