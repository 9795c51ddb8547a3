"""Massive activations, planted: counted exactly, named by row, the same whoever makes the shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_doubles import POST, MemoryTokens, open_draft, shards_of
from harvest_process import place
from test_takeover import OLD_ID, grow
from test_takeover import open_draft as open_version

from sae_pipeline.activations import (
    ActivationError,
    Earlier,
    audit_frame,
    harvest,
    harvest_range,
    outliers,
    summarise_shards,
    taken_over,
)
from sae_pipeline.store import Draft
from sae_pipeline.study import ActivationsConfig
from sae_pipeline.study.data import Outliers
from sae_pipeline.subjects import Subject

MASSIVE = 7
"""The token whose activation is massive, wherever it stands."""


def config(multiple: float = 10.0, dtype: str = "float32", **options: Any) -> ActivationsConfig:
    flag = Outliers(norm_over_median=multiple, action="flag")
    return ActivationsConfig(dtype=dtype, shard_tokens=128, micro_batch=5, outliers=flag, **options)  # type: ignore[arg-type]


@pytest.fixture
def massive(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Subject:
    run = subject.run

    def planted(ids_cl: torch.Tensor, sites: Any) -> Any:
        values = {site: value.clone() for site, value in run(ids_cl, sites).items()}
        for value_cld in values.values():
            value_cld[ids_cl == MASSIVE] *= 200.0
        return values

    monkeypatch.setattr(subject, "run", planted)
    return subject


def planted_rows(tokens: Any) -> list[int]:
    return np.flatnonzero(tokens.train.ids_nl[tokens.train.mask_nl] == MASSIVE).tolist()


def flagged_rows(draft: Draft) -> list[int]:
    array = draft.array("acts")
    return [
        array.rows(i).start + row for i in range(array.n_shards) for row in array.commit(i)["info"]["outliers"]["rows"]
    ]


def test_planted_rows_are_flagged_and_no_other(
    massive: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "PREFIX_ROWS", 100)
    monkeypatch.setattr("sae_pipeline.activations.harvesting.PREFIX_ROWS", 100)
    with open_draft(tmp_path / "a") as draft:
        harvest(massive, tokens, {POST: draft}, config())
        norm_r = np.linalg.norm(np.concatenate(shards_of(draft)).astype(np.float64), axis=1)
        record = draft.read_json("harvest.json")["outliers"]
        assert record["rows"] == 100
        assert record["median_norm"] == pytest.approx(float(np.median(norm_r[:100])), rel=1e-12)
        assert record["limit"] == 10 * record["median_norm"]
        assert flagged_rows(draft) == planted_rows(tokens) != []
        frame = audit_frame(draft)
        assert frame["outliers"].sum() == len(planted_rows(tokens))
        array, info = draft.array("acts"), draft.array("acts").commit(0)["info"]["outliers"]
        assert info["largest_norm"] == pytest.approx(norm_r[array.rows(0)].max(), rel=1e-12)
        summary = summarise_shards(draft)
        assert (summary["outliers"], summary["outlier_norm"]) == (len(planted_rows(tokens)), record["limit"])


def test_rows_stay_as_they_are(massive: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    plain = ActivationsConfig(dtype="bfloat16", shard_tokens=128, micro_batch=5)
    with open_draft(tmp_path / "a") as flagged, open_draft(tmp_path / "b") as other:
        harvest(massive, tokens, {POST: flagged}, config(dtype="bfloat16"))
        harvest(massive, tokens, {POST: other}, plain)
        for one, two in zip(shards_of(flagged), shards_of(other), strict=True):
            np.testing.assert_array_equal(one, two)
        assert "outliers" not in other.array("acts").commit(0)["info"]
        assert (audit_frame(other)["outliers"] == 0).all() and "outliers" not in summarise_shards(other)


def test_without_massive_rows_nothing_is_flagged(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config())
        assert flagged_rows(draft) == []
        assert summarise_shards(draft)["outliers"] == 0


def test_every_worker_counts_against_one_limit(massive: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    """The one who makes only late shards too; a resume reuses what is recorded."""
    where = {POST: place(tmp_path / "a")}
    harvest_range(massive, tokens, where, config(), shards=range(4, 7))
    harvest_range(massive, tokens, where, config(), shards=range(5))
    with open_draft(tmp_path / "a") as draft, open_draft(tmp_path / "b") as alone:
        harvest(massive, tokens, {POST: draft}, config())
        harvest(massive, tokens, {POST: alone}, config())
        array, other = draft.array("acts"), alone.array("acts")
        for i in range(array.n_shards):
            assert array.commit_path(i).read_bytes() == other.commit_path(i).read_bytes()


def test_values_that_are_not_finite_are_no_outliers(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subject.run

    def spoilt(ids_cl: torch.Tensor, sites: Any) -> Any:
        values = {site: value.clone() for site, value in run(ids_cl, sites).items()}
        values[POST][ids_cl == MASSIVE] = torch.inf
        return values

    monkeypatch.setattr(subject, "run", spoilt)
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config())
        assert flagged_rows(draft) == []
        assert audit_frame(draft)["non_finite"].sum() == len(planted_rows(tokens))


def test_rows_without_a_median_are_refused(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subject.run
    monkeypatch.setattr(subject, "run", lambda ids, sites: {site: 0 * x for site, x in run(ids, sites).items()})
    with open_draft(tmp_path / "a") as draft, pytest.raises(ActivationError, match="no median norm"):
        harvest(subject, tokens, {POST: draft}, config())


def test_a_later_version_counts_against_the_limit_of_the_earlier_one(
    massive: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its shards can be taken over, and counts of all versions compare."""
    with open_version(tmp_path / "old", OLD_ID) as draft:
        harvest(massive, tokens, {POST: draft}, config())
        old = draft.publish(summarise_shards(draft))
    new_tokens = grow(tokens)
    monkeypatch.setattr(outliers, "norms", None)  # nothing is measured anew to find the limit
    with open_version(tmp_path / "new") as draft:
        shards = range(3)
        harvest(massive, new_tokens, {POST: draft}, config(), earlier={POST: Earlier(old, tokens)}, shards=shards)
        assert taken_over(draft) == {OLD_ID: [0, 1, 2]}
        assert draft.read_json("harvest.json")["outliers"] == old.read_json("harvest.json")["outliers"]


def test_other_text_has_a_limit_of_its_own(massive: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_version(tmp_path / "old", OLD_ID) as draft:
        harvest(massive, tokens, {POST: draft}, config())
        old = draft.publish(summarise_shards(draft))
    other = grow(tokens)
    other.train.ids_nl[0] = 1 + other.train.ids_nl[0] % 70
    with open_version(tmp_path / "new") as draft:
        harvest(massive, other, {POST: draft}, config(), earlier={POST: Earlier(old, tokens)}, shards=range(3))
        assert taken_over(draft) == {}
        assert draft.read_json("harvest.json")["outliers"] != old.read_json("harvest.json")["outliers"]
