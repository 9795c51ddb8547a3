"""A version that continues another: what was held out stays, what was read comes first, new text follows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from token_doubles import ByteTokenizer, corpus, new_draft, random_text, write_jsonl

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Corpus, TokensConfig
from sae_pipeline.tokens import Document, Tokens, audit_frame, build_tokens

CONFIG = TokensConfig(context=16, train=20_000, held_out=800)
Place = tuple[str, int, tuple[int, ...]]


def build(
    path: Path,
    corpora: Sequence[Corpus],
    continues: Tokens | None = None,
    config: TokensConfig = CONFIG,
    *,
    split_list: Mapping[str, Sequence[str]] | None = None,
    tokenizer: ByteTokenizer | None = None,
) -> tuple[Tokens, dict[str, Any]]:
    with new_draft(path) as draft:
        summary = build_tokens(
            draft,
            config,
            corpora,
            tokenizer or ByteTokenizer(),
            seed=3,
            root=path.parent,
            split_list=split_list or {},
            continues=continues,
        )
        return Tokens.open(draft.publish(summary)), summary


def places(tokens: Tokens, split: str) -> list[Place]:
    """Every context: corpus and document, where it starts, its ids."""
    contexts, table = tokens.split(split), tokens.documents
    names = (table["corpus"] + ":" + table["id"]).to_numpy()[contexts.document]
    ids = map(tuple, contexts.ids(0, contexts.n).tolist())
    return list(zip(names.tolist(), contexts.start.tolist(), ids, strict=True))


def sides(tokens: Tokens) -> dict[str, str]:
    return dict(zip(tokens.documents["id"], tokens.documents["split"], strict=True))


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def texts(seed: int, n: int, n_words: int = 60) -> list[str]:
    generator = np.random.default_rng(seed)
    return [random_text(generator, n_words) for _ in range(n)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, text in enumerate(texts(0, 20)):
        write(tmp_path / "lib", f"m{i:02}.txt", text)
    return tmp_path / "lib"


def assert_continues(old: Tokens, new: Tokens) -> None:
    before, after = places(old, "train"), places(new, "train")
    assert after[: len(before)] == before
    assert places(new, "held_out") == places(old, "held_out")
    assert len(set(after)) == len({place[:2] for place in after}) == len(after)
    n = len(old.documents)
    columns = ["document", "id", "corpus", "split", "n_tokens", "sha256"]
    pd.testing.assert_frame_equal(new.documents[columns][:n], old.documents[columns])
    for split in ("train", "held_out"):
        n = old.split(split).n
        np.testing.assert_array_equal(new.split(split).document[:n], old.split(split).document)


def test_new_files_follow_what_was_there(tmp_path: Path, folder: Path) -> None:
    old, _ = build(tmp_path / "old", [corpus("lib")])
    held_out = places(old, "held_out")[0][0].removeprefix("c:")
    for i, text in enumerate(texts(1, 5)):
        write(folder, f"a{i}.txt", text)  # sorts before what was there: and every document keeps its number
    write(folder, "z.txt", (folder / held_out).read_text() + " edited")
    new, summary = build(tmp_path / "new", [corpus("lib")], old)
    assert_continues(old, new)
    assert sides(new)["z.txt"] == "excluded"
    added = places(new, "train")[len(places(old, "train")) :]
    assert {name for name, _, _ in added} == {f"c:a{i}.txt" for i in range(5)}
    assert [name for name, _, _ in added] != sorted(name for name, _, _ in added)
    for row in range(0, new.split("train").n_rows, 97):
        name, position = new.trace("train", row)
        context, at = new.split("train").locate(row)
        text = ByteTokenizer().encode_batch([(folder / name).read_text()])[0]
        assert new.split("train").ids(context, context + 1)[0, at] == (text[position] if position >= 0 else 0)
    assert (new.generation, new.rows_before, new.sized_by_rows) == (1, old.split("train").n_rows, old.sized_by_rows)
    assert summary["rows_before"] == old.split("train").n_rows
    frame = audit_frame(new._source)
    clean = ["rows_minus_mask", "documents_in_both", "crossing_contexts", "bad_padding"]
    assert (frame[clean] == 0).all(axis=None)
    assert frame["rows_added"].tolist() == [new.split("train").n_rows - new.rows_before] * 2


def test_every_version_begins_with_the_one_before_it(tmp_path: Path, folder: Path) -> None:
    tokens, _ = build(tmp_path / "0", [corpus("lib")])
    first = tokens
    for generation in range(1, 4):
        for i, text in enumerate(texts(generation, 3)):
            write(folder, f"{i}-{generation}.txt", text)
        later, _ = build(tmp_path / str(generation), [corpus("lib")], tokens)
        assert_continues(tokens, later)
        assert (later.generation, later.sized_by_rows) == (generation, first.split("train").n_rows)
        tokens = later
    again, _ = build(tmp_path / "again", [corpus("lib")], Tokens.open(tokens._source))
    assert places(again, "train") == places(tokens, "train")  # nothing was added: nothing but the number changes


def test_a_larger_budget_takes_what_the_first_left_out_and_a_full_one_nothing(tmp_path: Path, folder: Path) -> None:
    small = CONFIG.model_copy(update={"train": 1500})
    old, _ = build(tmp_path / "old", [corpus("lib")], config=small)
    assert 1500 - 16 < old.split("train").n_rows <= 1500
    write(folder, "new.txt", texts(1, 1, 400)[0])
    full, _ = build(tmp_path / "full", [corpus("lib")], old, small)
    assert places(full, "train") == places(old, "train")
    assert audit_frame(full._source)["rows_added"].max() == 0
    more, _ = build(tmp_path / "more", [corpus("lib")], old, CONFIG.model_copy(update={"train": 3000}))
    assert_continues(old, more)
    assert 3000 - 16 < more.split("train").n_rows <= 3000
    added = {name for name, _, _ in places(more, "train")[len(places(old, "train")) :]}
    assert "c:new.txt" in added and len(added) > 5


def test_text_that_outgrows_the_first_sixteen_times_gets_shards_of_another_size(tmp_path: Path, folder: Path) -> None:
    old, _ = build(tmp_path / "old", [corpus("lib")], config=CONFIG.model_copy(update={"train": 100}))
    within, _ = build(tmp_path / "within", [corpus("lib")], old, CONFIG.model_copy(update={"train": 16 * 90}))
    beyond, _ = build(tmp_path / "beyond", [corpus("lib")], within, CONFIG.model_copy(update={"train": 2000}))
    assert within.sized_by_rows == old.split("train").n_rows
    assert beyond.sized_by_rows == beyond.split("train").n_rows > 16 * old.split("train").n_rows


def test_a_corpus_more_and_its_weight(tmp_path: Path, folder: Path) -> None:
    config = CONFIG.model_copy(update={"train": 2000})
    old, _ = build(tmp_path / "old", [corpus("lib")], config=config)
    write_jsonl(tmp_path / "web.jsonl", texts(5, 30))
    both = [corpus("lib", weight=1.0), corpus("web.jsonl", "web", weight=1.0)]
    full, summary = build(tmp_path / "full", both, old, config)
    # Rows that are held stay, so a corpus can be left with less than its share: here with none, there is no room.
    assert places(full, "train") == places(old, "train")
    even, summary = build(tmp_path / "even", both, old, CONFIG.model_copy(update={"train": 4000}))
    assert_continues(old, even)
    assert summary["train_share_web"] == pytest.approx(0.5, abs=0.01)
    uneven, summary = build(tmp_path / "uneven", both, old, CONFIG.model_copy(update={"train": 3000}))
    assert summary["train_share_web"] == pytest.approx(1 / 3, abs=0.01)
    assert uneven.split("train").n_rows <= 3000
    assert "web" not in {name.split(":")[0] for name, _, _ in places(even, "held_out")}


def test_a_corpus_with_a_limit_keeps_what_was_read_and_takes_more_up_to_it(tmp_path: Path) -> None:
    for i, text in enumerate(texts(0, 600, 20)):
        write(tmp_path / "lib", f"m{i:03}.txt", text)
    cut = [corpus("lib", tokens=20_000)]
    old, _ = build(tmp_path / "old", cut)
    assert len(old.documents) == 256  # reading stops at the end of the batch that reaches the limit
    for i, text in enumerate(texts(1, 5, 20)):
        write(tmp_path / "lib", f"a{i}.txt", text)
    new, _ = build(tmp_path / "new", cut, old)
    assert sides(new) == sides(old)
    assert_continues(old, new)
    (room,) = [corpus("lib", tokens=int(old.documents["n_tokens"].sum()) + 1)]
    more, _ = build(tmp_path / "more", [room], old)
    assert_continues(old, more)
    assert {f"a{i}.txt" for i in range(5)} < set(sides(more)) and len(more.documents) < 606


def test_a_stream_without_an_end_is_read_as_far_as_before_and_on_to_the_new_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_pipeline.tokens import build as module

    def endless(corpus: Corpus, **_: Any) -> Iterator[Document]:
        generator = np.random.default_rng(7)
        for row in itertools.count():
            yield Document(f"train/{row}", random_text(generator, 20), corpus.name)

    monkeypatch.setattr(module, "documents", endless)
    hub = [corpus("hf:org/name")]
    config = CONFIG.model_copy(update={"train": 10_000})
    old, _ = build(tmp_path / "old", hub, config=config)
    same, _ = build(tmp_path / "same", hub, old, config)
    assert len(same.documents) == len(old.documents)
    more, _ = build(tmp_path / "more", hub, old, CONFIG.model_copy(update={"train": 60_000}))
    assert_continues(old, more)
    assert 59_900 < more.split("train").n_rows <= 60_000


def test_a_new_document_that_the_card_holds_out_is_never_training_text(tmp_path: Path, folder: Path) -> None:
    listed = {"c": ["m03.txt", "later.txt"]}
    card = corpus("lib", split="embedded_card")
    old, _ = build(tmp_path / "old", [card], split_list=listed)
    write(folder, "later.txt", texts(1, 1)[0])
    write(folder, "other.txt", texts(2, 1)[0])
    new, _ = build(tmp_path / "new", [card], old, split_list=listed)
    assert_continues(old, new)
    assert (sides(new)["later.txt"], sides(new)["other.txt"], sides(new)["m03.txt"]) == (
        "excluded",
        "train",
        "held_out",
    )


def test_a_build_is_a_function_of_text_and_version_and_is_resumed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_pipeline.tokens import build as module

    old, _ = build(tmp_path / "old", [corpus("lib")])
    write(folder, "new.txt", texts(1, 1)[0])
    build(tmp_path / "whole", [corpus("lib")], old)

    def killed(table: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "parquet_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cut", [corpus("lib")], old)
    build(tmp_path / "cut", [corpus("lib")], old)
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert len(files) > 10
    for name in files - {Path("artefact.json")}:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class Upper(ByteTokenizer):
    """The same fingerprint and other ids, as another version of a library may give."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return super().encode_batch([text.upper() for text in texts])


def test_what_cannot_be_continued_is_refused(tmp_path: Path, folder: Path) -> None:
    old, _ = build(tmp_path / "old", [corpus("lib")])
    with pytest.raises(PipelineError, match=r"gives other tokens.*current.json away"):
        build(tmp_path / "a", [corpus("lib")], old, tokenizer=Upper())
    with pytest.raises(PipelineError, match="build them afresh"):
        build(tmp_path / "b", [corpus("lib")], old, CONFIG.model_copy(update={"context": 32}))
    content = (folder / "m07.txt").read_text()
    write(folder, "m07.txt", content.replace("w", "v", 1))
    with pytest.raises(PipelineError, match=r"m07.txt is not what it was"):
        build(tmp_path / "c", [corpus("lib")], old)
    (folder / "m07.txt").unlink()
    with pytest.raises(PipelineError, match=r"m07.txt is not what it was"):
        build(tmp_path / "d", [corpus("lib")], old)
    write(folder, "m07.txt", content)
    assert build(tmp_path / "e", [corpus("lib")], old)[0].rows_before == old.split("train").n_rows
