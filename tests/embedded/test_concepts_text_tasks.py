from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_pipeline.embedded.concepts import TEST, TRAIN, read_text_tasks, text_probe_set
from sae_pipeline.store import PipelineError

GOOD = [
    {"text": "good", "label": 1, "split": "train", "note": "ignored"},
    {"text": "bad", "label": 0, "split": "train"},
    {"text": "gut", "label": 1, "split": "test"},
    {"text": "schlecht é", "label": 0, "split": "test"},
]


class Bytes:
    """Every byte is a token: its value plus 2."""

    def __init__(self, bos_id: int | None = 0) -> None:
        self.bos_id, self.pad_id = bos_id, 1

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 2 for byte in text.encode()] for text in texts]


def lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_files_folders_and_globs_give_the_same_tasks(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(lines(GOOD))
    (tmp_path / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(("\n" + lines(GOOD)).encode()))
    (tmp_path / "manifest.jsonl").write_text('{"task": "a"}\n')
    (tmp_path / "tasks.json").write_text("{}")
    folder = read_text_tasks(str(tmp_path), root=Path())
    assert [task.name for task in folder] == ["a", "sub/b"]
    assert folder[0].texts == folder[1].texts == tuple(str(row["text"]) for row in GOOD)
    assert folder[0].labels == (True, False, True, False) and folder[0].splits == (TRAIN, TRAIN, TEST, TEST)
    assert folder[0].lines == (1, 2, 3, 4) and folder[1].lines == (2, 3, 4, 5)
    assert read_text_tasks("a.jsonl", root=tmp_path) == folder[:1]
    (from_glob,) = read_text_tasks("sub/*.gz", root=tmp_path)
    assert (from_glob.name, from_glob.texts) == ("b", folder[1].texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lines([*GOOD, {"text": "x", "split": "test"}]),
            r"bad\.jsonl, line 5 has no label; it has \['split', 'text'\]",
        ),
        (lines([*GOOD, {"text": "x"}]), r"line 5 has no label and no split"),
        (lines([*GOOD, {"text": "x", "label": 2, "split": "test"}]), r"line 5: label 2 is neither 0 nor 1"),
        (lines([*GOOD, {"text": "x", "label": True, "split": "test"}]), r"line 5: label True is neither"),
        (lines([*GOOD, {"text": "x", "label": "1", "split": "test"}]), r"line 5: label '1' is neither"),
        (lines([*GOOD, {"text": "x", "label": 1, "split": "valid"}]), r"line 5: split 'valid' is neither 'train' nor"),
        (lines([*GOOD, {"text": 5, "label": 1, "split": "test"}]), r"line 5: field 'text' holds int, not text"),
        (lines([*GOOD, {"text": "", "label": 1, "split": "test"}]), r"line 5: the text is empty"),
        (lines([*GOOD, {**GOOD[0], "split": "test"}]), r"line 5: this text is a test row and, in line 1, a train row"),
        (lines(GOOD[:3]), r"bad\.jsonl has no label 0 in its test split"),
        (lines(GOOD[:2]), r"bad\.jsonl has no rows in its test split"),
        ("", r"bad\.jsonl holds no rows"),
        ("\n\n", r"bad\.jsonl holds no rows"),
        (lines(GOOD) + "{'text'}\n", r"bad\.jsonl, line 5 is not JSON"),
        (lines([*GOOD, 1]), r"line 5 is not a JSON object"),
    ],
)
def test_bad_files_are_refused_by_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(PipelineError, match=message):
        read_text_tasks("bad.jsonl", root=tmp_path)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: (folder / "x").mkdir(), "holds no file"),
        (lambda folder: (folder / "x").write_text("text"), "is none of"),
    ],
)
def test_a_source_that_holds_no_tasks_is_refused(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path)
    with pytest.raises(PipelineError, match=message):
        read_text_tasks("x", root=tmp_path)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(PipelineError, match=r"x\.txt is no \.jsonl file"):
        read_text_tasks("x.txt", root=tmp_path)


def test_a_row_stands_at_the_last_token_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(GOOD))
    (tmp_path / "b.jsonl").write_text(lines(GOOD[::-1]))
    probe_set = text_probe_set(read_text_tasks(".", root=tmp_path), Bytes(), context=6)
    assert [task.name for task in probe_set.tasks] == ["a", "b"]
    assert probe_set.ids_cl.shape == (8, 6)
    assert probe_set.ids_cl[1].tolist() == [0, *(byte + 2 for byte in b"bad"), 1, 1]
    assert probe_set.ids_cl[3].tolist() == [0, *(byte + 2 for byte in "schlecht é".encode()[-5:])]
    assert probe_set.length_c.tolist() == [5, 4, 4, 6, 6, 4, 4, 5]
    assert probe_set.position_r.tolist() == (probe_set.length_c - 1).tolist()
    assert (probe_set.token_r[:3] - 2).tolist() == list(b"ddt")
    assert (probe_set.previous_token_r[:3] - 2).tolist() == list(b"oau")
    assert probe_set.documents[:2] == ("a#1", "a#2") and len(set(probe_set.documents)) == 8
    assert probe_set.rows(1, TRAIN).tolist() == [6, 7] and probe_set.label_r[[6, 7]].tolist() == [False, True]
    assert probe_set.rows(0, TEST).tolist() == [2, 3]


def test_without_a_beginning_of_text_token_the_text_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(GOOD))
    tasks = read_text_tasks("a.jsonl", root=tmp_path)
    probe_set = text_probe_set(tasks, Bytes(bos_id=None), context=50)
    assert probe_set.ids_cl.shape == (4, 11) and probe_set.length_c.tolist() == [4, 3, 3, 11]
    with pytest.raises(PipelineError, match="lengthen them"):
        text_probe_set(tasks, Bytes(), context=1)
