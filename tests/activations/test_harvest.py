"""Harvest against a plain Hugging Face forward pass; order, resume, overflow and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from activation_doubles import (
    POST,
    MemoryContexts,
    MemoryTokens,
    config_of,
    make_contexts,
    make_tokens,
    open_draft,
    shards_of,
)

from sae_pipeline.activations import (
    ActivationError,
    ActivationOverflow,
    Moments,
    audit_frame,
    contexts_for_rows,
    harvest,
    open_activations,
    shard_rows_of,
)
from sae_pipeline.store import Draft, ShardedArray
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject


def reference_rows(subject: Subject, contexts: MemoryContexts) -> npt.NDArray[np.float32]:
    """Rows by a loop over single contexts, cut to their true length: no padding, no batching, no hooks of ours."""
    rows = []
    for ids_l, mask_l, length in zip(contexts.ids_nl, contexts.mask_nl, contexts.lengths, strict=True):
        with torch.no_grad():
            output = subject._model(torch.from_numpy(ids_l[None, :length]), output_hidden_states=True)
        rows.append(output.hidden_states[POST.layer + 1][0].numpy()[mask_l[:length]])
    return np.concatenate(rows)


@pytest.mark.parametrize("codec", ["zstd", "blosc-lz4"])
def test_a_codec_changes_the_bytes_and_no_row(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, codec: Literal["zstd", "blosc-lz4"]
) -> None:
    rows = []
    for name, chosen in (("plain", None), ("packed", codec)):
        config = config_of("float16").model_copy(update={"codec": chosen})
        with open_draft(tmp_path / name) as draft:
            harvest(subject, tokens, {POST: draft}, config)
            array = open_activations(draft.publish({}))
        rows.append(array.read(0, array.n_rows))
        codecs = [found.to_dict()["name"] for found in array._zarr.metadata.codecs[0].codecs]
        assert codecs == (["bytes", "crc32c"] if chosen is None else ["bytes", codec.partition("-")[0], "crc32c"])
    np.testing.assert_array_equal(*rows)


def test_rows_equal_a_direct_forward_pass(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of())
        rows = np.concatenate(shards_of(draft))
        expected = reference_rows(subject, tokens.train)
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-5)
        artefact = draft.publish({})
    array = open_activations(artefact)
    assert array.n_shards >= 7
    np.testing.assert_array_equal(array.read_float32(0, array.n_rows), rows)
    moments = Moments.total(
        (Moments.from_json(array.commit(i)["info"]["moments"]) for i in range(array.n_shards)), d=rows.shape[1]
    )
    np.testing.assert_allclose(moments.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-9, atol=1e-9)
    offsets = tokens.train.row_offsets
    for i in range(array.n_shards):
        first, last = array.commit(i)["info"]["contexts"]
        assert offsets[first] <= array.rows(i).start < offsets[first + 1]
        assert offsets[last - 1] < array.rows(i).stop <= offsets[last]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rows_are_the_rounded_values(dtype: str, subject: Subject, tmp_path: Path) -> None:
    tokens = make_tokens(20)
    with open_draft(tmp_path / "full") as full, open_draft(tmp_path / "half") as half:
        harvest(subject, tokens, {POST: full}, config_of())
        harvest(subject, tokens, {POST: half}, config_of(dtype))
        array = half.array("acts")
        expected = torch.from_numpy(np.concatenate(shards_of(full))).to(getattr(torch, dtype)).float()
        np.testing.assert_array_equal(array.read_float32(0, array.n_rows), expected.numpy())
        assert array.logical_dtype == dtype


def test_a_shard_depends_on_its_number_alone(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "in_order") as straight, open_draft(tmp_path / "backwards") as backwards:
        harvest(subject, tokens, {POST: straight}, config_of())
        n_shards = straight.array("acts").n_shards
        for i in reversed(range(n_shards)):
            harvest(subject, tokens, {POST: backwards}, config_of(), shards=range(i, i + 1))
        for one, other in zip(shards_of(straight), shards_of(backwards), strict=True):
            np.testing.assert_array_equal(one, other)


class Counting:
    """Counts forward passes of the model; optionally dies at one."""

    def __init__(self, subject: Subject, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> None:
        self.passes: list[tuple[Site, ...]] = []
        run = subject.run

        def counted(ids_cl: torch.Tensor, sites: Any) -> Any:
            self.passes.append(tuple(sites))
            if len(self.passes) == dies_at:
                raise KeyboardInterrupt
            return run(ids_cl, sites)

        monkeypatch.setattr(subject, "run", counted)


def test_a_killed_harvest_resumes_bit_equal(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_draft(tmp_path / "whole") as whole:
        harvest(subject, tokens, {POST: whole}, config_of())
        expected = shards_of(whole)
    with monkeypatch.context() as patch, open_draft(tmp_path / "killed") as killed:
        Counting(subject, patch, dies_at=12)
        with pytest.raises(KeyboardInterrupt):
            harvest(subject, tokens, {POST: killed}, config_of())
        done = sum(killed.array("acts").is_committed(i) for i in range(len(expected)))
        assert 0 < done < len(expected)
    with open_draft(tmp_path / "killed") as resumed:
        # Another micro-batch now: the draft keeps the one it was begun with, or the bits would differ.
        harvest(subject, tokens, {POST: resumed}, config_of(micro_batch=64))
        for one, other in zip(shards_of(resumed), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        counting = Counting(subject, monkeypatch)
        harvest(subject, tokens, {POST: resumed}, config_of())
        assert not counting.passes


def test_several_sites_share_one_pass(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [POST, Site("tiny", 0, "mlp_mid"), Site("tiny", 1, "attn_out")]
    drafts = {site: open_draft(tmp_path / str(site)) for site in sites}
    apart = {site: open_draft(tmp_path / f"apart.{site}") for site in sites}
    with monkeypatch.context() as patch:
        counting = Counting(subject, patch)
        harvest(subject, tokens, drafts, config_of())
        assert set(counting.passes) == {tuple(sites)}
        together = len(counting.passes)
        harvest(subject, tokens, {sites[1]: apart[sites[1]]}, config_of())
        assert len(counting.passes) == 2 * together
    for site in (sites[0], sites[2]):
        harvest(subject, tokens, {site: apart[site]}, config_of())
    for site in sites:
        for one, other in zip(shards_of(drafts[site]), shards_of(apart[site]), strict=True):
            np.testing.assert_array_equal(one, other)
        drafts[site].close()
        apart[site].close()


def test_drafts_begun_with_different_micro_batches_do_not_mix(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    other = Site("tiny", 0, "resid_pre")
    with open_draft(tmp_path / "a") as a, open_draft(tmp_path / "b") as b:
        harvest(subject, tokens, {POST: a}, config_of(micro_batch=4), shards=range(1))
        harvest(subject, tokens, {other: b}, config_of(micro_batch=6), shards=range(1))
        with pytest.raises(ActivationError, match=r"\[4, 6\].*apart"):
            harvest(subject, tokens, {POST: a, other: b}, config_of())


def scaled(subject: Subject, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], None]) -> None:
    run = subject.run

    def changed(ids_cl: torch.Tensor, sites: Any) -> Any:
        values = {site: value.clone() for site, value in run(ids_cl, sites).items()}
        for value in values.values():
            change(value)
        return values

    monkeypatch.setattr(subject, "run", changed)


def test_values_too_large_for_float16_stop_the_harvest(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(20, full=True)
    scaled(subject, monkeypatch, lambda value: value[0, 0].fill_(-70_000.0))
    with open_draft(tmp_path / "a") as draft:
        with pytest.raises(ActivationOverflow, match=r"tiny.1.resid_post, rows from 0: .* 70000 .*bfloat16 or float32"):
            harvest(subject, tokens, {POST: draft}, config_of("float16"))
        assert not draft.array("acts").is_committed(0)
    for dtype in ("bfloat16", "float32"):
        with open_draft(tmp_path / dtype) as draft:
            harvest(subject, tokens, {POST: draft}, config_of(dtype))
            assert audit_frame(draft)["absmax"].max() == pytest.approx(70_000, rel=0.01)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_the_model_makes_non_finite_is_recorded_for_the_gate(
    dtype: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(20, full=True)
    scaled(subject, monkeypatch, lambda value: value[0, 0, 2:4].copy_(torch.tensor([torch.nan, torch.inf])))
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of(dtype, micro_batch=10))
        frame = audit_frame(draft)
    assert frame["non_finite"].tolist()[0] == 1
    assert (frame["rows"] == frame["rows_expected"]).all()
    assert np.isfinite(frame[["absmax", "mean_norm", "std"]]).all(axis=None)


def test_progress_counts_tokens_to_the_end(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple[float, float, str]] = []

        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            self.seen.append((done, total, unit))

    first, second = Recorder(), Recorder()
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of(), progress=first, shards=range(2))
        harvest(subject, tokens, {POST: draft}, config_of(), progress=second)
    total = tokens.train.n_rows
    assert second.seen[-1] == (total, total, "tokens")
    assert second.seen[0][0] > 2 * shard_rows_of(total, 128) - 1


def test_splits_without_rows_and_monstrous_shards_are_refused(subject: Subject, tmp_path: Path) -> None:
    tokens = make_tokens(20)
    with open_draft(tmp_path / "b") as draft, pytest.raises(ActivationError, match="no eligible rows"):
        empty = make_contexts(3, 1)
        empty.mask_nl[:] = False
        harvest(subject, MemoryTokens(empty, empty), {POST: draft}, config_of())
    huge = Subject.width
    try:
        Subject.width = lambda self, site: 10_000_000
        with open_draft(tmp_path / "a") as draft, pytest.raises(ActivationError, match=r"shard_tokens to \d+"):
            harvest(subject, tokens, {POST: draft}, config_of())
    finally:
        Subject.width = huge


@pytest.mark.parametrize("n_rows", [1, 63, 64, 1000, 100_000, 1_999_999, 5_000_000])
@pytest.mark.parametrize("shard_tokens", [1000, 65_536, 300_001])
def test_there_are_at_least_sixteen_shards_where_data_allows(n_rows: int, shard_tokens: int, tmp_path: Path) -> None:
    rows = shard_rows_of(n_rows, shard_tokens)
    assert rows % 64 == 0
    assert rows < shard_tokens + 4096
    if n_rows >= 16 * 16 * 64:
        assert -(-n_rows // rows) >= 15
    with open_draft(tmp_path) as draft:
        array = draft.array("acts", shape=(n_rows, 128), dtype="float16", shard_rows=rows)  # the store can chunk it
        assert array.n_shards == -(-n_rows // rows)


def test_held_out_rows_are_rounded_up_to_whole_documents() -> None:
    contexts = make_contexts(40, 2)
    offsets = contexts.row_offsets
    for wanted in range(1, contexts.n_rows + 5):
        n = contexts_for_rows(contexts, wanted)
        assert n == contexts.n or contexts.document[n] != contexts.document[n - 1]
        assert offsets[n] >= min(wanted, contexts.n_rows)
        inside = int(np.searchsorted(offsets, min(wanted, contexts.n_rows))) - 1
        assert contexts.document[inside] == contexts.document[n - 1] or wanted >= contexts.n_rows


def planted(path: Path, change: Callable[[list[npt.NDArray[np.float32]]], None]) -> Draft:
    """A draft whose writer went wrong in a way that only the statistics can show."""
    draft = open_draft(path)
    array = draft.array("acts", shape=(64 * 4, 8), dtype="float32", shard_rows=64)
    shards = list(np.random.default_rng(0).normal(size=(4, 64, 8)).astype(np.float32))
    change(shards)
    for i, shard in enumerate(shards):
        moments = Moments.of(torch.from_numpy(shard)).to_json()
        array.write_shard(i, shard, {"moments": moments, "contexts": [0, 1]})
    return draft


def swap_files(array: ShardedArray) -> None:
    one, other = array.shard_path(1), array.shard_path(2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_the_audit_shows_what_is_wrong_with_a_shard(tmp_path: Path) -> None:
    def spoil(shards: list[npt.NDArray[np.float32]]) -> None:
        shards[1][:] = shards[1][0]
        shards[2][5, 3] = np.nan
        shards[3][:] = shards[0]

    with planted(tmp_path / "spoilt", spoil) as draft:
        frame = audit_frame(draft)
    assert frame["constant_dims"].tolist() == [0, 8, 0, 0]
    assert frame["non_finite"].tolist() == [0, 0, 1, 0]
    assert frame["duplicate_of"].tolist() == [-1, -1, -1, 0]
    assert frame["std"][1] == 0

    with planted(tmp_path / "sound", lambda shards: None) as draft:
        sound = audit_frame(draft)
        assert sound["shard"].tolist() == [0, 1, 2, 3]
        assert (sound["rows"] == sound["rows_expected"]).all() and sound["committed"].all()
        assert sound["std"].between(0.8, 1.2).all() and sound["mean_norm"].between(2, 4).all()
        assert (sound["damage"] == "").all() and (sound["duplicate_of"] == -1).all()

        swap_files(draft.array("acts"))
        swapped = audit_frame(draft)
        assert (swapped["damage"] != "").tolist() == [False, True, True, False]
        assert "exchanged" in swapped["damage"][1]


def test_the_audit_of_an_unfinished_draft_names_what_is_missing(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    with open_draft(tmp_path / "a") as draft:
        harvest(subject, tokens, {POST: draft}, config_of(), shards=range(1, 3))
        frame = audit_frame(draft)
    assert frame["committed"].tolist()[:4] == [False, True, True, False]
    assert frame.columns.tolist() == [
        *("shard", "committed", "rows", "rows_expected", "non_finite", "absmax"),
        *("mean_norm", "std", "outliers", "constant_dims", "duplicate_of", "damage", "remade"),
    ]
