"""Corpora that cannot be read, divided or tokenised: named before a token is made."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pyarrow
import pyarrow.parquet
import pytest

from tests.pipeline.front_door import UNREADABLE, World, assert_refused

TEXT = "one text of some length that repeats nothing else, " * 20
SOURCE = "corpora.0.source"


def _file(name: str, data: bytes | str) -> Callable[[World], list[str]]:
    """Make the corpus one file beside the good ones."""

    def spoil(world: World) -> list[str]:
        (world.corpus / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return []

    return spoil


def _only(name: str, data: bytes | str) -> Callable[[World], list[str]]:
    """Make the corpus one file alone."""

    def spoil(world: World) -> list[str]:
        path = world.folder / "only" / name
        path.parent.mkdir()
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return [f"{SOURCE}={path}"]

    return spoil


def _set(*settings: str) -> Callable[[World], list[str]]:
    return lambda world: list(settings)


def _parquet(column: str = "text") -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({column: [f"{i} {TEXT}" for i in range(200)]}), sink, compression="NONE")
    return bytes(sink.getvalue())


def _torn_page() -> bytes:
    """The footer is whole, the data is not: only reading to the end can tell."""
    data = bytearray(_parquet())
    data[4:400] = bytes(396)
    return bytes(data)


def _lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


GOOD = {"text": TEXT}

# name: (what is spoilt; what the message names; what it says to do)
BAD: dict[str, tuple[Callable[[World], list[str]], str, str]] = {
    "no such path": (_set(f"{SOURCE}=nowhere/at/all"), "nowhere/at/all does not exist", "`source` is stdlib, a file"),
    "no such kind of source": (_set(f"{SOURCE}=s3://bucket/text"), "bucket/text does not exist", "hf:<org>/<name>"),
    "an empty file": (_only("a.txt", ""), "a.txt) holds no text", "point `source` at files with text"),
    "blank records": (_only("a.jsonl", _lines({"text": " "}, {"text": None})), "holds no text", "files with text"),
    "a folder without text": (_set(f"{SOURCE}=docs/images"), "docs/images holds no file", "expected .txt, .jsonl"),
    "a glob of other files": (_set(f"{SOURCE}=docs/images/*.png"), "graph.png is none of .txt", "narrow the glob"),
    "binary called text": (_file("a.txt", b"\x7fELF\0\0\0"), "a.txt holds NUL bytes", "take it out of the corpus"),
    "another encoding": (_file("a.txt", "naïve".encode("latin-1")), "a.txt is not UTF-8", "convert it or take it out"),
    "no gzip": (_file("a.txt.gz", "plain"), "a.txt.gz is not a whole gzip file", "download or pack it again"),
    "half a gzip": (_file("a.txt.gz", gzip.compress(TEXT.encode())[:-9]), "a.txt.gz is not a whole", "pack it again"),
    "half a parquet": (_file("a.parquet", _parquet()[:-20]), "a.parquet is not a parquet file", "write it again"),
    "a torn parquet": (_file("a.parquet", _torn_page()), "a.parquet is not a parquet file, or", "write it again"),
    "parquet without the column": (
        _only("a.parquet", _parquet("content")),
        "a.parquet has no column 'text'",
        "set the corpus's `field` to one of ['content']",
    ),
    "records without the field": (
        _only("a.jsonl", _lines({"body": TEXT})),
        "a.jsonl, line 1 has no field 'text'",
        "set the corpus's `field` to one of ['body']",
    ),
    "a later record without the field": (
        _file("a.jsonl", _lines(GOOD, {"body": TEXT})),
        "a.jsonl, line 2 has no field 'text'",
        "set the corpus's `field`",
    ),
    "a broken line": (
        _file("a.jsonl", _lines(GOOD, GOOD) + '{"text": "cut'),
        "a.jsonl, line 3 is not JSON",
        "mend the line",
    ),
    "a line that is no record": (_file("a.jsonl", '["text"]'), "line 1 is not a JSON object", "one record a line"),
    "a field of numbers": (_file("a.jsonl", _lines({"text": 3})), "field 'text' holds int", "`field` to another"),
    "half a character": (_file("a.jsonl", '{"text": "\\ud83d"}'), "a.jsonl, line 1", "a lone surrogate); mend it"),
    "a name that is no text": (_file(os.fsdecode(b"\xff.txt"), TEXT), "its name is not UTF-8", "rename it"),
    "one document": (_only("a.txt", TEXT), "too small to hold documents out: 1 document", "add files, or divide it"),
    "copies of one document": (_only("a.jsonl", _lines(GOOD, GOOD, GOOD)), "3 documents of one text", "add files"),
    "documents shorter than a context": (
        _only("a.jsonl", _lines(*({"text": f"{i}"} for i in range(50)))),
        "no document fills a context of 16 tokens",
        "lower tokens.context",
    ),
    "a split that the subject does not ship": (
        _set("corpora.0.split=embedded_card"),
        "model ships none",
        "use split: near_duplicate_cluster",
    ),
    "a split of other documents": (
        _set("corpora.0.split=embedded_card", "subject={alias: tiny, id: embedded/code-medium, device: cpu}"),
        "none of the documents that the card holds out",
        "use split: near_duplicate_cluster",
    ),
    "a subset of a folder": (_set("corpora.0.subset=en"), "words.subset belongs to hf: sources", "leave it out"),
    "documents since a day": (_set("corpora.0.since=2026-01-01"), "words.since", "leave it out"),
    "no name on the hub": (_set(f"{SOURCE}=hf:a/b/c"), "hf:a/b/c cannot be read", "Check its name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_corpus_that_cannot_be(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, names, says = BAD[name]
    assert_refused(world, capsys, world.run(*spoil(world)), names=names, says=says)


def test_a_backfill_of_what_cannot_be_read(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.corpus / "a.jsonl").write_text('{"text": "cut')
    argv = ["backfill", "tokens", "--study", str(world.study), "--outputs", str(world.outputs)]
    assert_refused(world, capsys, argv, names="a.jsonl, line 1 is not JSON", says="mend the line")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.corpus / "0.txt").chmod(0)
    assert_refused(world, capsys, world.run(), names="0.txt cannot be read", says="mend its permissions")


@pytest.mark.skipif(not os.path.exists(UNREADABLE), reason="needs /proc")
def test_a_file_that_fails_when_it_is_read(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.corpus / "a.txt").symlink_to(UNREADABLE)
    assert_refused(world, capsys, world.run(), names="a.txt cannot be read", says="mend its permissions")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A machine that no name resolves on; yields how long this thread asked to wait, in seconds."""
    naps: list[float] = []
    nap = time.sleep

    def no_name(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    def note(seconds: float) -> None:
        here = threading.current_thread() is threading.main_thread()
        naps.extend([seconds] if here else [])
        nap(0.001 if here else seconds)

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr(time, "sleep", note)
    yield naps


@pytest.mark.parametrize(
    ("settings", "names", "says"),
    [
        ([f"{SOURCE}=hf:nobody/nothing"], "hf:nobody/nothing cannot be read", "without a network point `source` at"),
        (
            [f"{SOURCE}=hf:nobody/nothing", f"corpora.0.revision={'c' * 40}"],
            "hf:nobody/nothing cannot be read",
            "without a network point `source` at",
        ),
        (["subject.id=nobody/nothing"], "'nobody/nothing' is neither a folder nor", "Check the id, the network"),
    ],
    ids=["a dataset", "a dataset pinned to a commit", "a subject"],
)
def test_without_a_network_the_hub_is_given_up_at_once(
    settings: list[str],
    names: str,
    says: str,
    world: World,
    no_network: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(world, capsys, world.run(*settings), names=names, says=says)
    assert sum(no_network) < 1
