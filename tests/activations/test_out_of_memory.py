"""A pass that does not fit into memory: smaller from there on, recorded, and no bit in doubt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_doubles import POST, MemoryTokens, config_of, make_contexts, open_draft, shards_of
from test_takeover import OLD_ID, PRE, assert_same, grow, made
from test_takeover import open_draft as open_version

from sae_pipeline.activations import (
    ActivationError,
    Earlier,
    EvaluationSet,
    MicroBatch,
    build_evaluation_set,
    harvest,
    summarise_shards,
    taken_over,
)
from sae_pipeline.store import Artefact, Draft
from sae_pipeline.subjects import Subject


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def on_the_processor() -> None:
    torch.empty(1 << 60)  # what torch itself says there


class Bounded:
    """A subject on a machine whose memory takes `most` contexts a pass; counts the contexts of each that fitted."""

    def __init__(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch, most: int, fail: Callable[[], None] = on_a_gpu
    ) -> None:
        self.most, self.sizes = most, list[int]()
        self.held: list[weakref.ref[Any]] = []
        self.held_at_retry: list[bool] = []
        run, resume = subject.run, subject.resume

        def bounded_run(ids_cl: torch.Tensor, sites: Any) -> Any:
            self.held_at_retry += [reference() is not None for reference in self.held]
            self.held.clear()
            self._allocate(len(ids_cl), fail)
            self.sizes.append(len(ids_cl))
            return run(ids_cl, sites)

        def bounded_resume(site: Any, value_cld: torch.Tensor, ids_cl: torch.Tensor) -> torch.Tensor:
            self._allocate(len(ids_cl), fail)
            return resume(site, value_cld, ids_cl)

        monkeypatch.setattr(subject, "run", bounded_run)
        monkeypatch.setattr(subject, "resume", bounded_resume)

    def _allocate(self, contexts: int, fail: Callable[[], None]) -> None:
        kept = torch.empty(100)
        if contexts > self.most:
            self.held.append(weakref.ref(kept))
            fail()


def sizes_of(draft: Draft) -> list[int]:
    array = draft.array("acts")
    return [array.commit(i)["info"]["micro_batch"] for i in range(array.n_shards)]


@pytest.mark.parametrize("fail", [on_a_gpu, on_the_processor])
def test_a_pass_that_does_not_fit_is_halved_until_it_does(
    fail: Callable[[], None], subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_draft(tmp_path / "small") as small:
        harvest(subject, tokens, {POST: small}, config_of(micro_batch=3))
        expected = shards_of(small)
    bounded = Bounded(subject, monkeypatch, most=4, fail=fail)
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of(micro_batch=12))
        for one, other in zip(shards_of(draft), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert draft.read_json("harvest.json") == {"micro_batch": 3, "begun_with": 12}
        assert set(sizes_of(draft)) == {3} and max(bounded.sizes) == 3
        assert summarise_shards(draft)["micro_batch"] == 3
    assert bounded.held_at_retry == [False, False], "a failed pass must not keep its tensors while the next one runs"


def test_shards_committed_before_stay_and_say_what_made_them(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[int, list[Any]] = {}
    for size in (8, 4):
        with open_draft(tmp_path / str(size)) as draft:
            harvest(subject, tokens, {POST: draft}, config_of(micro_batch=size))
            expected[size] = shards_of(draft)
    with open_draft(tmp_path / "a") as draft, monkeypatch.context() as patch:
        bounded = Bounded(subject, patch, most=8)
        harvest(subject, tokens, {POST: draft}, config_of(micro_batch=8), shards=range(3))
        bounded.most = 5  # another process has taken the rest of the memory
        harvest(subject, tokens, {POST: draft}, config_of(micro_batch=8), shards=range(3, 5))
        assert draft.read_json("harvest.json") == {"micro_batch": 4, "begun_with": 8}
    with open_draft(tmp_path / "a") as draft:
        bounded = Bounded(subject, monkeypatch, most=100)
        harvest(subject, tokens, {POST: draft}, config_of(micro_batch=8))
        assert max(bounded.sizes) == 4, "a resume must go on with the recorded one"
        sizes = sizes_of(draft)
        assert sizes == [8] * 3 + [4] * (len(sizes) - 3)
        for i, (size, rows) in enumerate(zip(sizes, shards_of(draft), strict=True)):
            np.testing.assert_array_equal(rows, expected[size][i])


def test_progress_takes_a_failed_attempt_back(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    class Recorder:
        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            seen.append((done, total))

    run, calls = subject.run, iter(range(1, 1000))
    monkeypatch.setattr(subject, "run", lambda ids, sites: on_a_gpu() if next(calls) == 3 else run(ids, sites))
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of(micro_batch=2), progress=Recorder())
    total = tokens.train.n_rows
    assert seen[-1] == (total, total) and max(done for done, _ in seen) == total
    assert any(later < sooner for (sooner, _), (later, _) in pairwise(seen))


def test_a_single_context_that_does_not_fit_says_what_to_change(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bounded(subject, monkeypatch, most=0)
    with (
        open_draft(tmp_path / "a") as draft,
        pytest.raises(ActivationError, match=r"single context.*20\.00 GiB.*lower"),
    ):
        harvest(subject, tokens, {POST: draft}, config_of())


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    bounded = Bounded(subject, monkeypatch, most=0, fail=fail)
    with open_draft(tmp_path / "a") as draft, pytest.raises(RuntimeError, match="mat1"):
        harvest(subject, tokens, {POST: draft}, config_of())
    assert len(bounded.held) == 1 and not bounded.sizes


def test_a_death_between_the_records_of_two_sites_is_survived(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    drafts = {POST: open_draft(tmp_path / "post"), PRE: open_draft(tmp_path / "pre")}
    harvest(subject, tokens, drafts, config_of(micro_batch=8), shards=range(2))
    drafts[POST].write_json("harvest.json", {"micro_batch": 4, "begun_with": 8})
    harvest(subject, tokens, drafts, config_of(micro_batch=8))
    for draft in drafts.values():
        assert sizes_of(draft)[:3] == [8, 8, 4]
        draft.close()


def test_a_later_version_takes_over_what_was_made_before_and_after(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with what sufficed at last: a size that did not fit is not tried again."""
    old_draft = open_version(tmp_path / "old", OLD_ID)
    with old_draft, monkeypatch.context() as patch:
        bounded = Bounded(subject, patch, most=8)
        harvest(subject, tokens, {POST: old_draft}, config_of(micro_batch=8), shards=range(2))
        bounded.most = 4
        harvest(subject, tokens, {POST: old_draft}, config_of(micro_batch=8))
        old = old_draft.publish(summarise_shards(old_draft))
    kept = old.array("acts").n_shards - 1
    new_tokens = grow(tokens)
    with open_version(tmp_path / "new") as draft:
        bounded = Bounded(subject, monkeypatch, most=4)
        harvest(subject, new_tokens, {POST: draft}, config_of(micro_batch=8), earlier={POST: Earlier(old, tokens)})
        assert taken_over(draft) == {OLD_ID: list(range(kept))}
        assert MicroBatch.of(draft) == MicroBatch(4, 8)
        assert sizes_of(draft)[:3] == [8, 8, 4] and not bounded.held_at_retry
        new = draft.publish(summarise_shards(draft))
    assert new.summary["shards_taken_over"] == kept
    with open_version(tmp_path / "other") as draft:  # begun with another: nothing is the same
        harvest(subject, new_tokens, {POST: draft}, config_of(micro_batch=4), earlier={POST: Earlier(old, tokens)})
        assert taken_over(draft) == {} and set(sizes_of(draft)) == {4}
        assert_same(draft.publish({}), made(tmp_path / "full", subject, new_tokens, micro_batch=4))


def test_a_record_without_a_micro_batch_was_made_with_the_first(tmp_path: Path) -> None:
    assert MicroBatch(4, 16).of_shard({"info": {}}) == 16
    assert MicroBatch(4, 16).of_shard({"info": {"micro_batch": 8}}) == 8


@pytest.mark.parametrize("fits", [0, 3, 12])  # passes that fit before one does not: at once, in the middle, in ablation
def test_an_evaluation_set_is_made_in_one_size(
    fits: int, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_pipeline.activations.evaluation_builder._SHARD_BYTES", 1)
    tokens = MemoryTokens(make_contexts(20, 1), make_contexts(30, 2))

    def built(name: str, micro_batch: int) -> Artefact:
        with open_draft(tmp_path / name, "evaluation_set") as draft:
            summary = build_evaluation_set(subject, tokens, POST, draft, n_tokens=150, micro_batch=micro_batch)
            assert summary["micro_batch"] == 3 and summary["resume_max_abs_difference"] == 0
            return draft.publish(summary)

    small = built("small", 3)
    bounded = Bounded(subject, monkeypatch, most=1000)
    resume, calls = subject.resume, iter(range(1000))

    def resume_for_a_while(*arguments: Any) -> Any:
        bounded.most = 1000 if next(calls) < fits else 3
        return resume(*arguments)

    monkeypatch.setattr(subject, "resume", resume_for_a_while)
    halved = built("halved", 6)
    assert bounded.held_at_retry, "there was no pass that did not fit"
    assert halved.read_json("harvest.json") == {"micro_batch": 3, "begun_with": 6}
    assert EvaluationSet.open(halved).micro_batch == 3
    assert halved.verify() == [] and halved.summary == small.summary and halved.arrays == small.arrays
    for name in small.arrays:
        one, other = small.array(name), halved.array(name)
        np.testing.assert_array_equal(one.read(0, one.n_rows), other.read(0, other.n_rows))
