from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from token_doubles import ByteTokenizer, NoBosTokenizer, corpus, new_draft, random_text, write_jsonl

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Corpus, TokensConfig
from sae_pipeline.tokens import Tokens, audit_frame, build_tokens, window_overlap

CONFIG = TokensConfig(context=16, train=4000, held_out=800)


def build(
    path: Path,
    corpora: Sequence[Corpus],
    config: TokensConfig = CONFIG,
    *,
    seed: int = 0,
    split_list: Mapping[str, Sequence[str]] | None = None,
    tokenizer: ByteTokenizer | None = None,
) -> tuple[Tokens, dict[str, Any]]:
    draft = new_draft(path)
    summary = build_tokens(
        draft, config, corpora, tokenizer or ByteTokenizer(), seed=seed, root=path.parent, split_list=split_list or {}
    )
    return Tokens.open(draft.publish(summary)), summary


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    texts = [random_text(generator, int(generator.integers(5, 60))) for _ in range(60)]
    # Three near-copies of one text, an exact copy of another, special tokens inside a third.
    texts += [texts[0] + " and then some", texts[0] + " and some more", texts[1], "@ mark @ " + texts[2]]
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "all.jsonl", texts)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Tokens, dict[str, Any]]:
    return build(tmp_path_factory.mktemp("out") / "tokens", [corpus(folder / "all.jsonl")])


def contexts_of(tokens: Tokens, split: str) -> list[tuple[int, int, tuple[int, ...]]]:
    contexts = tokens.split(split)
    ids = contexts.ids(0, contexts.n).tolist()
    return [(int(d), int(s), tuple(row)) for d, s, row in zip(contexts.document, contexts.start, ids, strict=True)]


def test_every_row_is_the_token_its_trace_points_to(built: tuple[Tokens, dict[str, Any]], texts: list[str]) -> None:
    tokens, _ = built
    tokenizer = ByteTokenizer()
    for split in ("train", "held_out"):
        contexts = tokens.split(split)
        ids, mask = contexts.ids(0, contexts.n), contexts.row_mask(0, contexts.n)
        values = ids[mask]
        assert len(values) == contexts.n_rows == mask.sum()
        assert contexts.row_offsets.tolist() == [0, *np.cumsum(mask.sum(1)).tolist()]
        for row in range(0, contexts.n_rows, 41):
            name, position = tokens.trace(split, row)
            document = tokenizer.encode_batch([texts[int(name.split("#")[1])]])[0]
            assert values[row] == (tokenizer.bos_id if position == -1 else document[position])
    with pytest.raises(PipelineError, match="does not exist"):
        tokens.trace("train", tokens.split("train").n_rows)


def test_no_document_and_no_near_duplicate_is_on_both_sides(built: tuple[Tokens, dict[str, Any]]) -> None:
    tokens, _ = built
    table = tokens.documents
    assert set(table["split"]) == {"train", "held_out"}
    assert table.groupby("cluster")["split"].nunique().max() == 1
    clusters = table["cluster"].tolist()
    assert clusters[60] == clusters[61] == clusters[0] and clusters[62] == clusters[1]
    for split in ("train", "held_out"):
        used = np.unique(tokens.split(split).document)
        assert set(table["split"].iloc[used]) == {split}


def test_budgets_are_met_by_whole_contexts_and_never_exceeded(built: tuple[Tokens, dict[str, Any]]) -> None:
    tokens, summary = built
    for split, budget in (("train", 4000), ("held_out", 800)):
        contexts = tokens.split(split)
        assert budget - contexts.context < contexts.n_rows <= budget
        assert summary[f"{split}_rows"] == contexts.n_rows
        assert summary[f"{split}_rows_requested"] == budget
        per_document = np.bincount(contexts.document, np.diff(contexts.row_offsets), minlength=len(tokens.documents))
        used = tokens.documents["split"] == split
        assert tokens.documents["rows"][used].tolist() == per_document[used].tolist()


def test_training_contexts_are_permuted_and_held_out_ones_are_in_reading_order(
    built: tuple[Tokens, dict[str, Any]],
) -> None:
    tokens, _ = built
    train, held_out = contexts_of(tokens, "train"), contexts_of(tokens, "held_out")
    assert len({(d, s) for d, s, _ in train}) == len(train)
    neighbours = sum(a[0] == b[0] for a, b in itertools.pairwise(train))
    assert neighbours < len(train) / 5
    seen: list[int] = []
    for d, s, _ in held_out:
        if not seen or seen[-1] != d:
            assert d not in seen and s == 0
            seen.append(d)
    starts = [s for _, s, _ in held_out]
    assert all(b > a or b == 0 for a, b in itertools.pairwise(starts))


def test_the_seed_decides_order_and_split_and_the_rest_is_deterministic(tmp_path: Path, folder: Path) -> None:
    source = [corpus(folder / "all.jsonl")]
    runs = {name: build(tmp_path / name, source, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    for split in ("train", "held_out"):
        a, b, c = (contexts_of(runs[name], split) for name in "abc")
        assert a == b != c
    pd.testing.assert_frame_equal(runs["a"].documents, runs["b"].documents)
    assert runs["a"].documents["split"].tolist() != runs["c"].documents["split"].tolist()


def test_a_build_cut_short_is_continued(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_pipeline.tokens import build as module

    whole, _ = build(tmp_path / "whole", [corpus(folder / "all.jsonl")])
    draft = new_draft(tmp_path / "cut")

    def killed(table: Any) -> bytes:
        raise KeyboardInterrupt

    arguments = (draft, CONFIG, [corpus(folder / "all.jsonl")], ByteTokenizer())
    with monkeypatch.context() as patch:
        patch.setattr(module, "parquet_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build_tokens(*arguments, seed=0, root=tmp_path)
    draft.close()
    with new_draft(tmp_path / "cut") as again:
        tokens = Tokens.open(again.publish(build_tokens(again, *arguments[1:], seed=0, root=tmp_path)))
    assert contexts_of(tokens, "train") == contexts_of(whole, "train")
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.startswith(".scratch")]


def test_overlap_is_that_of_used_held_out_documents_with_training_documents(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    passage = random_text(generator, 30)
    texts = [f"{random_text(generator, 80)} {passage} {random_text(generator, 80)}" for _ in range(12)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    tokens, summary = build(tmp_path / "out", [corpus("a.jsonl")])
    encoded = [np.asarray(ids) for ids in ByteTokenizer().encode_batch(texts)]
    table = tokens.documents
    used = [encoded[i] for i in np.flatnonzero((table["split"] == "held_out") & (table["rows"] > 0))]
    expected = window_overlap(used, [encoded[i] for i in np.flatnonzero(table["split"] == "train")])
    assert expected.share > 0.01
    assert summary["overlap"] == pytest.approx(expected.share)


def test_weights_are_shares_of_rows_and_the_scarcest_corpus_limits(tmp_path: Path, texts: list[str]) -> None:
    generator = np.random.default_rng(2)
    write_jsonl(tmp_path / "small.jsonl", [random_text(generator, 40) for _ in range(20)])
    write_jsonl(tmp_path / "large.jsonl", [random_text(generator, 40) for _ in range(60)])
    corpora = [corpus("small.jsonl", "small", weight=0.25), corpus("large.jsonl", "large", weight=0.75)]
    _, summary = build(tmp_path / "enough", corpora)
    for split in ("train", "held_out"):
        assert summary[f"{split}_share_small"] == pytest.approx(0.25, abs=0.02)
    assert summary["train_rows"] > 3950
    _, summary = build(tmp_path / "scarce", [corpora[0].model_copy(update={"weight": 3.0}), corpora[1]])
    assert summary["train_share_small"] == pytest.approx(0.8, abs=0.01)
    assert summary["train_rows"] < 3950 < summary["train_rows_available"]


def test_a_corpus_takes_no_more_tokens_than_it_is_told_to(tmp_path: Path, folder: Path) -> None:
    _, whole = build(tmp_path / "whole", [corpus(folder / "all.jsonl")], CONFIG)
    write_jsonl(tmp_path / "long.jsonl", [random_text(np.random.default_rng(i), 60) for i in range(600)])
    tokens, summary = build(tmp_path / "part", [corpus("long.jsonl", tokens=5000)])
    assert whole["documents"] == 64
    assert summary["documents"] == 256  # reading stops at the end of the batch that reaches the limit
    assert len(tokens.documents) == 256


def test_the_card_decides_and_unknown_twins_of_held_out_documents_are_excluded(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    originals = [random_text(generator, 120) for _ in range(8)]
    for i, text in enumerate(originals):
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "lib" / f"m{i}.txt").write_text(text)
    # Another version of the library: a held-out file under a new name, a training file edited, a new file.
    (tmp_path / "lib" / "moved.txt").write_text(originals[0] + " edited")
    (tmp_path / "lib" / "new.txt").write_text(random_text(generator, 120))
    source = corpus("lib", split="embedded_card")
    tokens, summary = build(tmp_path / "out", [source], split_list={"c": ["m0.txt", "m5.txt", "gone.txt"]})
    sides = dict(zip(tokens.documents["id"], tokens.documents["split"], strict=True))
    assert {name for name, side in sides.items() if side == "held_out"} == {"m0.txt", "m5.txt"}
    assert {name for name, side in sides.items() if side == "excluded"} == {"moved.txt"}
    assert sides["new.txt"] == "train"
    assert summary["documents_excluded"] == 1
    used = {tokens.trace(split, row)[0] for split in ("train", "held_out") for row in range(0, 500, 50)}
    assert "moved.txt" not in used
    with pytest.raises(PipelineError, match="needs the card of an embedded subject"):
        build(tmp_path / "no_card", [source])
    with pytest.raises(PipelineError, match="none of the documents that the card holds out"):
        build(tmp_path / "other_card", [source], split_list={"c": ["x"]})


@pytest.mark.parametrize(
    ("change", "weight", "message"),
    [
        ({"context": 5000}, 1.0, r"no document fills a context of 5000.*lower tokens\.context"),
        ({"held_out": 3}, 1.0, "below one context"),
        ({}, 0.0, "weight above 0"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(
    tmp_path: Path, folder: Path, change: dict[str, int], weight: float, message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        build(tmp_path / "t", [corpus(folder / "all.jsonl", weight=weight)], CONFIG.model_copy(update=change))
    assert sorted(path.name for path in (tmp_path / "t").iterdir() if path.is_dir()) == []


def test_corpora_without_enough_text_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "blank.jsonl", ["", "  \n"])
    write_jsonl(tmp_path / "copies.jsonl", ["the same text again"] * 3)
    for source, message in (("blank.jsonl", "holds no text"), ("copies.jsonl", "does not repeat the rest")):
        with pytest.raises(PipelineError, match=message):
            build(tmp_path / source.removesuffix(".jsonl"), [corpus(source)])


def test_bos_policy_needs_a_bos_token(tmp_path: Path, folder: Path) -> None:
    source = [corpus(folder / "all.jsonl")]
    with pytest.raises(PipelineError, match="no BOS token"):
        build(tmp_path / "a", source, tokenizer=NoBosTokenizer())
    tokens, _ = build(tmp_path / "b", source, CONFIG.model_copy(update={"bos": "none"}), tokenizer=NoBosTokenizer())
    assert tokens.split("train").ids(0, 50).min() > 0


def test_audit_of_a_good_artefact(built: tuple[Tokens, dict[str, Any]]) -> None:
    tokens, summary = built
    frame = audit_frame(tokens._source).set_index("split")
    assert list(frame.index) == ["train", "held_out"]
    clean = ["rows_minus_mask", "documents_in_both", "clusters_in_both", "crossing_contexts", "bad_padding"]
    assert (frame[clean] == 0).all(axis=None)
    for split in frame.index:
        contexts = tokens.split(split)
        ids = contexts.ids(0, contexts.n)
        assert (frame.loc[split, ["min_id", "max_id"]] == [ids.min(), ids.max()]).all()
        assert frame.loc[split, "rows"] == contexts.n_rows
        assert frame.loc[split, "budget_share"] == pytest.approx(contexts.n_rows / summary[f"{split}_rows_requested"])
        padding = (np.arange(16) >= contexts.lengths[:, None]).mean()
        assert frame.loc[split, "padding_share"] == pytest.approx(padding)
    assert frame.loc["held_out", "overlap"] == summary["overlap"]


def test_audit_sees_wrong_counts_padding_and_documents(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_pipeline.tokens import build as module

    real = module._write_split

    def wrong(draft: Any, split: str, side: Any, encoded: Any, layout: Any, *rest: Any) -> None:
        side.rows[0] += 1
        side.packed.document[:] = 0  # every context claims the first document, in both splits
        object.__setattr__(layout, "pad_id", 200)
        real(draft, split, side, encoded, layout, *rest)
        object.__setattr__(layout, "pad_id", 1)

    monkeypatch.setattr(module, "_write_split", wrong)
    draft = new_draft(tmp_path / "bad")
    build_tokens(draft, CONFIG, [corpus(folder / "all.jsonl")], ByteTokenizer(), seed=0, root=tmp_path)
    frame = audit_frame(draft).set_index("split")
    assert (frame["rows_minus_mask"] >= 1).all()
    assert (frame["documents_in_both"] == 1).all()
    assert (frame["bad_padding"] > 0).all()
    assert (frame["crossing_contexts"] > 0).all()
