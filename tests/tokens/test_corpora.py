from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from token_doubles import corpus, write_jsonl

from sae_pipeline.tokens import CorpusError, documents, fingerprint, stdlib_documents


def read(source: object, root: Path, **fields: object) -> dict[str, str]:
    return {document.id: document.text for document in documents(corpus(source, **fields), root=root)}


def write_parquet(path: Path, column: str, values: list[Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(values))), column: values}), path)


def test_a_text_file_is_one_document_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\ntwo\u2028 é\n".encode())
    assert read("a.txt", tmp_path) == {"a.txt": "one\r\ntwo\u2028 é\n"}


def test_separator_lines_divide_documents(tmp_path: Path) -> None:
    text = "<|endoftext|>\nfirst\n<|endoftext|>\n\n<|endoftext|>  \nsecond <|endoftext|> still\n"
    (tmp_path / "a.txt").write_text(text)
    # Names count every piece, blank ones too, though only pieces with text are documents.
    assert read("a.txt", tmp_path) == {"a.txt#1": "first\n", "a.txt#3": "second <|endoftext|> still\n"}


def test_folder_of_every_kind_gzipped_or_not_in_sorted_order(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("bee")
    (folder / "deep" / "a.txt.gz").write_bytes(gzip.compress(b"ay\n<|endoftext|>\nah"))
    write_jsonl(folder / "c.jsonl", ["x", " ", "y"])
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "z"}\n\n{"text": null}\n'))
    write_parquet(folder / "e.parquet", "text", ["p", "q"])
    (folder / ".hidden.txt").write_text("no")
    (folder / "picture.png").write_bytes(b"\0")
    found = read("corpus", tmp_path)
    assert list(found.items()) == [
        ("b.txt", "bee"),
        ("c.jsonl#0", "x"),
        ("c.jsonl#2", "y"),
        ("d.jsonl.gz#0", "z"),
        ("deep/a.txt.gz#0", "ay\n"),
        ("deep/a.txt.gz#1", "ah"),
        ("e.parquet#0", "p"),
        ("e.parquet#1", "q"),
    ]
    assert read(folder, Path("/nowhere")) == found  # an absolute source ignores the root


def test_a_manifest_beside_text_is_left_out_but_alone_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    write_jsonl(tmp_path / "manifest.jsonl", ["path"], field="path")
    assert list(read(tmp_path, tmp_path)) == ["t.txt"]
    (tmp_path / "t.txt").unlink()
    with pytest.raises(CorpusError, match=r"no field 'text'.*\['path'\]"):
        read(tmp_path, tmp_path)


def test_globs_reach_into_folders_and_names_start_where_the_glob_does(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "2026-11" / "a.jsonl", ["one"])
    write_jsonl(tmp_path / "in" / "2026-12" / "a.jsonl", ["two"])
    (tmp_path / "in" / "2026-12" / "readme.txt").write_text("no")
    assert list(read("in/*/*.jsonl", tmp_path)) == ["2026-11/a.jsonl#0", "2026-12/a.jsonl#0"]
    assert list(read("in/**/*.txt", tmp_path)) == ["2026-12/readme.txt"]


def test_field_names_the_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", "content", ["p"])
    assert read("a.parquet", tmp_path, field="content") == {"a.parquet#0": "p"}
    with pytest.raises(CorpusError, match=r"no column 'text'.*'id', 'content'"):
        read("a.parquet", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"text\0more", "binary"),
        ("a.txt", "naïve".encode("latin-1"), "not UTF-8"),
        ("a.txt.gz", b"not gzip", "not a whole gzip"),
        ("a.txt.gz", gzip.compress(b"long enough to cut " * 50, mtime=0)[:-12], "not a whole gzip"),
        ("a.jsonl", b'{"text": "x"}\n{broken', "line 2 is not JSON"),
        ("a.jsonl", b'["text"]', "not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "holds int, not text"),
        ("a.parquet", b"PAR1 no", "not a parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        read(tmp_path, tmp_path)
    assert name in str(caught.value)


def test_sources_without_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    for source, message in (("gone", "does not exist"), ("empty", "holds no file"), ("*.txt", "holds no file")):
        with pytest.raises(CorpusError, match=message):
            read(source, tmp_path)
    with pytest.raises(CorpusError, match="narrow the glob"):
        read("*.png", tmp_path)


def test_fingerprint_follows_content_and_names_and_nothing_else(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_jsonl(tmp_path / place / "a.jsonl", ["x", "y"])
    first, second = (fingerprint(corpus(place), root=tmp_path) for place in ("one", "two"))
    assert first == second and first["files"] == 1
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "b.jsonl")
    renamed = fingerprint(corpus("two"), root=tmp_path)
    write_jsonl(tmp_path / "one" / "a.jsonl", ["x", "z"])
    edited = fingerprint(corpus("one"), root=tmp_path)
    assert len({json.dumps(value) for value in (first, renamed, edited)}) == 3


def test_stdlib_skips_what_is_generated_foreign_or_undecodable(tmp_path: Path) -> None:
    text = "# comment\n" * 60
    for name in ("os.py", "json/tool.py", "site-packages/x.py", "encodings/y.py", "pydoc_data/topics.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "_sysconfigdata__linux_.py").write_text(text)
    (tmp_path / "tiny.py").write_text("pass\n")
    (tmp_path / "latin.py").write_bytes(text.encode() + b"\xe9")
    assert [document.id for document in stdlib_documents(tmp_path)] == ["json/tool.py", "os.py"]


def test_the_running_interpreters_library_is_a_corpus() -> None:
    found = {document.id: document for document in documents(corpus("stdlib"), root=Path("/nowhere"))}
    assert len(found) > 300
    assert "class JSONDecoder" in found["json/decoder.py"].text
    assert fingerprint(corpus("stdlib"), root=Path("/nowhere"))["documents"] == len(found)


COMMIT = "c" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for the hub; returns the calls made to it."""
    import datasets
    import huggingface_hub

    calls: list[tuple[Any, ...]] = []

    def load(path: str, **options: Any) -> Iterator[dict[str, str]]:
        calls.append((path, options))
        return iter([{"content": "first"}, {"content": ""}, {"content": "third"}])

    def info(self: Any, name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        calls.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    return calls


def test_hub_corpora_stream_from_a_resolved_commit(hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    found = read("hf:org/name", tmp_path, field="content", subset="en", revision="v1")
    assert found == {"train/0": "first", "train/2": "third"}
    load = {"name": "en", "split": "train", "revision": COMMIT, "streaming": True}
    assert hub == [("org/name", "v1"), ("org/name", load)]
    assert fingerprint(corpus("hf:org/name"), root=tmp_path)["commit"] == COMMIT


def test_a_full_commit_needs_no_hub_to_be_resolved(hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    found = fingerprint(corpus("hf:org/name", revision="d" * 40), root=tmp_path)
    assert found == {"kind": "hub", "dataset": "org/name", "subset": None, "commit": "d" * 40}
    assert hub == []


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    class NoRoute(Exception):
        """As the hub's client raises them: with no built-in base but Exception."""

    def offline(*args: Any, **options: Any) -> None:
        raise NoRoute("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    for revision in (None, "d" * 40):  # resolving fails, or only reading does
        with pytest.raises(CorpusError, match=r"hf:org/name cannot be read.*local \.txt"):
            read("hf:org/name", tmp_path, revision=revision)


def test_progress_counts_bytes_up_to_all_of_them(tmp_path: Path) -> None:
    seen: list[tuple[float, float, str]] = []

    class Seen:
        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            seen.append((done, total, unit))

    write_jsonl(tmp_path / "a.jsonl", ["word " * 400] * 50)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text\n<|endoftext|>\ntext"))
    n_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(list(documents(corpus(tmp_path), root=tmp_path, progress=Seen()))) == 52
    assert seen[-1] == (n_bytes, n_bytes, "bytes")
    assert {total for _, total, _ in seen} == {n_bytes}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert len({done for done, _, _ in seen}) > 5
