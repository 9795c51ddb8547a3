"""Shards taken over from an earlier version: the bits of a full harvest, the model run on the rest alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_doubles import POST, MemoryContexts, MemoryTokens, config_of, make_contexts

from sae_pipeline.activations import Earlier, audit_frame, harvest, summarise_shards, taken_over, takeover
from sae_pipeline.activations.layout import span_of
from sae_pipeline.dataset.build import merge_moments
from sae_pipeline.store import Artefact, Damaged, Draft
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject

PRE = Site("tiny", 0, "resid_pre")
OLD_ID, NEW_ID = "1" * 64, "2" * 64
CONFIG = {"subject": "tiny", "site": "post", "dtype": "float32"}


@dataclass
class Grown(MemoryTokens):
    """Tokens that continue others: a shard keeps the size it had there."""

    sized_by: int = 0

    @property
    def sized_by_rows(self) -> int:
        return self.sized_by


def joined(a: MemoryContexts, b: MemoryContexts) -> MemoryContexts:
    pairs = ((getattr(a, name), getattr(b, name)) for name in ("ids_nl", "lengths", "mask_nl"))
    return MemoryContexts(*map(np.concatenate, pairs), np.concatenate([a.document, b.document + 1000]))


def grow(old: MemoryTokens, n: int = 25) -> Grown:
    return Grown(joined(old.train, make_contexts(n, 9)), old.held_out, old.train.n_rows)


def open_draft(path: Path, identity: str = NEW_ID, **config: Any) -> Draft:
    record = {"stage": "activations", "version": 1, "config": CONFIG | config, "inputs": {"tokens": identity}}
    return Draft.open(path, stage="activations", key="tiny", identity=identity, lineage=record)


def made(
    path: Path, subject: Subject, tokens: Any, identity: str = NEW_ID, *, site: Site = POST, **options: Any
) -> Artefact:
    with open_draft(path, identity) as draft:
        harvest(subject, tokens, {site: draft}, config_of(**options))
        return draft.publish(summarise_shards(draft))


class Contexts:
    """Counts the contexts that the model is run on; optionally dies at one pass."""

    def __init__(self, subject: Subject, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> None:
        self.n, self.passes, run = 0, 0, subject.run

        def counted(ids_cl: torch.Tensor, sites: Any) -> Any:
            self.passes += 1
            if self.passes == dies_at:
                raise KeyboardInterrupt
            self.n += len(ids_cl)
            return run(ids_cl, sites)

        monkeypatch.setattr(subject, "run", counted)


def contexts_of_shards(tokens: Any, artefact: Artefact, shards: range | list[int]) -> int:
    array, offsets = artefact.array("acts"), tokens.train.row_offsets
    spans = [span_of(offsets, array.rows(i)) for i in shards]
    return sum(span.last - span.first for span in spans)


def assert_same(one: Artefact, other: Artefact) -> None:
    """Equal rows, equal shard files, equal commit records, equal statistics."""
    a, b = one.array("acts"), other.array("acts")
    assert a.shape == b.shape
    for i in range(a.n_shards):
        assert a.shard_path(i).read_bytes() == b.shard_path(i).read_bytes()
        assert a.commit_path(i).read_bytes() == b.commit_path(i).read_bytes()
    assert merge_moments(a).to_json() == merge_moments(b).to_json()


def test_only_new_shards_are_made_and_the_whole_is_a_full_harvest(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    full = made(tmp_path / "full", subject, new_tokens)
    kept = old.array("acts").n_shards - 1  # the last one is shorter
    assert old.array("acts").n_rows % old.array("acts").shard_rows > 0 and kept > 3
    before = old.array("acts").read(0, tokens.train.n_rows)
    with open_draft(tmp_path / "new") as draft:
        with monkeypatch.context() as patch:
            ran = Contexts(subject, patch)
            harvest(subject, new_tokens, {POST: draft}, config_of(), earlier={POST: Earlier(old, tokens)})
        new = draft.publish(summarise_shards(draft))
    rest = range(kept, new.array("acts").n_shards)
    assert ran.n == contexts_of_shards(new_tokens, new, rest) < new_tokens.train.n / 2
    assert taken_over(new) == {OLD_ID: list(range(kept))} and taken_over(full) == {}
    assert new.summary == full.summary | {"shards_taken_over": kept}
    assert_same(new, full)
    assert audit_frame(new).equals(audit_frame(full))
    np.testing.assert_array_equal(Artefact.open(old.path).array("acts").read(0, tokens.train.n_rows), before)
    assert old.verify() == []
    shutil.rmtree(old.path)
    assert Artefact.open(new.path).verify() == []


def test_a_site_without_an_earlier_version_is_made_beside_one_that_has_it(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    full = {site: made(tmp_path / f"full.{site}", subject, new_tokens, site=site) for site in (POST, PRE)}
    drafts = {site: open_draft(tmp_path / str(site)) for site in (POST, PRE)}
    calls: list[tuple[Site, ...]] = []
    run = subject.run
    monkeypatch.setattr(subject, "run", lambda ids_cl, sites: calls.append(tuple(sites)) or run(ids_cl, sites))
    harvest(subject, new_tokens, drafts, config_of(), earlier={POST: Earlier(old, tokens), PRE: None})
    assert set(calls) == {(PRE,), (POST, PRE)}
    for site, draft in drafts.items():
        assert_same(draft.publish({}), full[site])


def test_the_last_shard_is_kept_where_it_was_full(subject: Subject, tmp_path: Path) -> None:
    tokens = MemoryTokens(make_contexts(64, 1, full=True), make_contexts(4, 2))  # 768 rows: 12 shards of 64
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    assert old.array("acts").n_rows % old.array("acts").shard_rows == 0
    with open_draft(tmp_path / "new") as draft:
        harvest(subject, new_tokens, {POST: draft}, config_of(), earlier={POST: Earlier(old, tokens)})
        assert taken_over(draft) == {OLD_ID: list(range(old.array("acts").n_shards))}
        assert_same(draft.publish({}), made(tmp_path / "full", subject, new_tokens))


def _flip(old: Artefact) -> None:
    path = old.array("acts").shard_path(1)
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "spoil",
    [
        _flip,
        lambda old: old.array("acts").shard_path(1).unlink(),
        lambda old: old.array("acts").commit_path(1).unlink(),
        lambda old: shutil.copy(old.array("acts").shard_path(0), old.array("acts").shard_path(1)),
    ],
    ids=["flipped bit", "shard gone", "record gone", "exchanged"],
)
def test_a_damaged_shard_is_made_anew(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, spoil: Callable[[Artefact], None]
) -> None:
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    spoil(old)
    with open_draft(tmp_path / "new") as draft:
        harvest(subject, new_tokens, {POST: draft}, config_of(), earlier={POST: Earlier(old, tokens)})
        assert 1 not in taken_over(draft)[OLD_ID] and len(taken_over(draft)[OLD_ID]) > 2
        assert_same(draft.publish({}), made(tmp_path / "full", subject, new_tokens))


def changed(tokens: Grown, name: str, row_l: np.ndarray[Any, Any], c: int) -> Grown:
    values_nl = getattr(tokens.train, name).copy()
    assert (values_nl[c] != row_l).any()
    values_nl[c] = row_l
    return replace(tokens, train=replace(tokens.train, **{name: values_nl}))


def test_a_shard_of_other_contexts_is_not_taken_over(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    old, grown = made(tmp_path / "old", subject, tokens, OLD_ID), grow(tokens)
    kept = range(old.array("acts").n_shards - 1)
    mask_nl = tokens.train.mask_nl
    c = next(c for c in range(20, 60) if 0 < mask_nl[c].sum() < mask_nl.shape[1])  # some positions are no rows
    fewer_l = mask_nl[c] & (np.cumsum(mask_nl[c]) > 1)
    cases = {
        "other ids": changed(grown, "ids_nl", 1 + grown.train.ids_nl[c] % 70, c),
        "other rows of it": changed(grown, "mask_nl", mask_nl[c][::-1], c),
        "fewer rows of it": changed(grown, "mask_nl", fewer_l, c),
    }
    for name, now in cases.items():
        with open_draft(tmp_path / name) as draft:
            harvest(subject, now, {POST: draft}, config_of(), earlier={POST: Earlier(old, tokens)})
            spans = {i: span_of(now.train.row_offsets, draft.array("acts").rows(i)) for i in kept}
            untouched = [i for i in kept if spans[i].last <= c or (spans[i].first > c and name != "fewer rows of it")]
            assert taken_over(draft) == {OLD_ID: untouched}, name
            assert 0 < len(untouched) < len(kept)
            assert_same(draft.publish({}), made(tmp_path / f"full.{name}", subject, now))


def test_nothing_is_taken_over_from_what_was_made_otherwise(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "subject": ({"subject": "other"}, {}),
        "micro-batch": ({}, {"micro_batch": 7}),
        "dtype": ({"dtype": "float16"}, {"dtype": "float16"}),
        "dtype in the array alone": ({}, {"dtype": "float16"}),
        "size of a shard": ({}, {}),
    }
    for name, (record, options) in cases.items():
        now = replace(new_tokens, sized_by=2000) if name == "size of a shard" else new_tokens
        with open_draft(tmp_path / name, **record) as draft:
            harvest(subject, now, {POST: draft}, config_of(**options), earlier={POST: Earlier(old, tokens)})
            assert taken_over(draft) == {}, name
            assert draft.array("acts").is_committed(0)
    unnamed = Draft.open(tmp_path / "unnamed", stage="activations", key="tiny", identity=NEW_ID, lineage={})
    with unnamed as draft:
        harvest(subject, new_tokens, {POST: draft}, config_of(), earlier={POST: Earlier(old, tokens)})
        assert taken_over(draft) == {}


def test_tokens_that_cannot_be_read_prove_nothing(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    new_tokens, damaged = grow(tokens), replace(tokens)

    def unreadable(name: str) -> Any:
        raise Damaged(tmp_path / "train_ids", "cut short")

    monkeypatch.setattr(damaged, "split", unreadable)
    with open_draft(tmp_path / "new") as draft:
        harvest(subject, new_tokens, {POST: draft}, config_of(), earlier={POST: Earlier(old, damaged)})
        assert taken_over(draft) == {}
        assert_same(draft.publish({}), made(tmp_path / "full", subject, new_tokens))


def test_the_note_is_right_after_a_death_at_any_shard(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between shards while taking over, then resumed with the earlier version or without it."""
    new_tokens = grow(tokens)
    old = made(tmp_path / "old", subject, tokens, OLD_ID)
    full = made(tmp_path / "full", subject, new_tokens)
    kept = old.array("acts").n_shards - 1
    earlier = {POST: Earlier(old, tokens)}

    def dies_at(n: int) -> Callable[..., bool]:
        def adopted(array: Any, i: int, source: Any) -> bool:
            if i == n:
                raise KeyboardInterrupt
            return real(array, i, source)

        return adopted

    real = takeover._adopted
    for name, resumed_with, expected in (
        ("with", earlier, list(range(kept))),
        ("without", None, [0, 1]),
    ):
        with open_draft(tmp_path / name) as draft, monkeypatch.context() as patch:
            patch.setattr(takeover, "_adopted", dies_at(2))
            with pytest.raises(KeyboardInterrupt):
                harvest(subject, new_tokens, {POST: draft}, config_of(), earlier=earlier)
            assert json.loads((draft.path / "harvest.json").read_text())["taken_over"] == {OLD_ID: list(range(kept))}
        with open_draft(tmp_path / name) as draft:
            harvest(subject, new_tokens, {POST: draft}, config_of(), earlier=resumed_with)
            assert taken_over(draft) == {OLD_ID: expected}
            assert_same(draft.publish({}), full)


def test_work_divided_by_shards_takes_over_its_own(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    new_tokens, earlier = grow(tokens), {POST: Earlier(made(tmp_path / "old", subject, tokens, OLD_ID), tokens)}
    with open_draft(tmp_path / "new") as draft:
        harvest(subject, new_tokens, {POST: draft}, config_of(), earlier=earlier, shards=range(2, 4))
        assert taken_over(draft) == {OLD_ID: [2, 3]}
        array = draft.array("acts")
        assert [array.is_committed(i) for i in range(5)] == [False, False, True, True, False]
