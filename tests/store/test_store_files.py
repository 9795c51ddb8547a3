from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artefact import fill, open_draft

from sae_pipeline.store import (
    Artefact,
    Busy,
    Console,
    Damaged,
    Draft,
    NewerFormat,
    NotPublished,
    Outputs,
    PipelineError,
    atomic,
    read_json,
    write_json_atomic,
)
from sae_pipeline.store.progress import human

SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=9), v, max_size=4), max_leaves=20
)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if value in (float("inf"), float("-inf")) else value


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda k: k != "checksum"), VALUES, min_size=1, max_size=5)
)
def test_json_survives_writing_and_sealing(value: dict[str, object]) -> None:
    assert json.loads(atomic.dumps(value)) == _finite(value)
    assert atomic.unseal(Path("x"), atomic.seal(value)) == _finite(value)


def test_json_takes_numpy_values_and_writes_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(
        path, {"b": np.float32(0.5), "a": np.arange(3), "c": (1, float("nan")), "p": Path("x/y"), 1: True}
    )
    assert read_json(path) == {"b": 0.5, "a": [0, 1, 2], "c": [1, None], "p": "x/y", "1": True}
    path.write_text("{")
    with pytest.raises(Damaged, match=r"a\.json"):
        read_json(path)


def test_every_flipped_bit_of_a_sealed_record_is_found() -> None:
    sealed = atomic.seal({"rows": [0, 36], "info": {"mean": [0.1, 2e-9]}, "text": "é"})
    for position in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[position] ^= 1 << bit
            with pytest.raises(Damaged):
                atomic.unseal(Path("x"), bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(Damaged):
            atomic.unseal(Path("x"), sealed[:length])


def test_the_seal_can_be_checked_with_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(atomic.seal({"rows": 3, "deep": {"a": [1]}}))
    found = subprocess.run(["sh", "-c", "tail -n +2 a.json | sha256sum"], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads((tmp_path / "a.json").read_text())["checksum"] == found.stdout.split()[0]


def test_create_never_replaces_and_replace_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    atomic.create(path, b"one")
    with pytest.raises(FileExistsError):
        atomic.create(path, b"two")
    assert path.read_bytes() == b"one"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            atomic.replace(path, b"three")
    assert path.read_bytes() == b"one"
    atomic.replace(path, b"three")
    assert path.read_bytes() == b"three" and os.listdir(tmp_path) == ["a"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    atomic.create(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


HOLDER = """
import sys
from pathlib import Path
from sae_pipeline.store import Draft
draft = Draft.open(Path(sys.argv[1]), stage="activations", key="code.1.mlp_out", identity="0f" * 32, lineage={})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_draft_until_that_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "draft"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {holder.pid} is working on it") as caught:
            open_draft(path)
        assert caught.value.pid == str(holder.pid)
        holder.kill()
        holder.wait()
    with open_draft(path) as draft, pytest.raises(Busy, match=str(os.getpid())):
        open_draft(draft.path)
    open_draft(path).close()


def test_a_draft_belongs_to_one_identity_and_is_invisible(tmp_path: Path) -> None:
    path = tmp_path / "draft"
    open_draft(path).close()
    with pytest.raises(NotPublished, match="run the stage"):
        Artefact.open(path)
    with pytest.raises(PipelineError, match="identity '0f0f"):
        Draft.open(path, stage="activations", key="code.1.mlp_out", identity="22", lineage={})
    with open_draft(path) as draft:  # the refusal above must have released the lock
        assert draft.lineage == {"from": ["a", 1]}


def test_publishing_needs_every_shard_and_closes_the_draft(tmp_path: Path) -> None:
    path = tmp_path / "draft"
    with open_draft(path) as draft:
        array = draft.array("x", shape=(9,), dtype="int32", shard_rows=2)
        for i in (0, 2, 4):
            array.write_shard(i, np.zeros(array.rows(i).stop - array.rows(i).start, np.int32))
        with pytest.raises(PipelineError, match=r"2 of 5 shards are not committed \(1, 3\)"):
            draft.publish({})
        for i in (1, 3):
            array.write_shard(i, np.zeros(2, np.int32))
        draft.write_json("sub/a.json", [1])
        draft.write_json("checkpoint.json", [1])
        draft.remove("checkpoint.json")
        (path / "weights.bin").write_bytes(b"written by a library")
        artefact = draft.publish({"n": 9})
    assert artefact.files == ["draft.json", "sub/a.json", "weights.bin", "x/zarr.json"] and artefact.arrays == ["x"]
    assert artefact.summary == {"n": 9} and artefact.exists("sub/a.json") and not artefact.exists("checkpoint.json")
    shard = np.zeros(2, np.int32)
    for act in (
        lambda: open_draft(path),
        lambda: draft.write_json("b.json", 1),
        lambda: draft.publish({}),
        lambda: array.write_shard(0, shard),
    ):
        with pytest.raises(PipelineError, match=r"published|closed"):
            act()
    with pytest.raises(PipelineError, match="read-only"):
        artefact.array("x").write_shard(0, shard)
    for ask in (artefact.array, artefact.file, artefact.read_json):
        with pytest.raises(PipelineError, match="has no"):
            ask("missing")


def test_what_crashed_writers_left_is_not_published(tmp_path: Path) -> None:
    with open_draft(tmp_path / "draft") as draft:
        fill(draft)
        (draft.path / ".statistics.json.0a1b.tmp").write_bytes(b"torn")
        (draft.path / "acts" / "c" / "0" / "0.00ff.partial").write_bytes(b"torn")
        artefact = draft.publish({})
    assert not [path for path in artefact.path.rglob("*") if path.suffix in (".tmp", ".partial")]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with open_draft(tmp_path / "draft") as draft:
        artefact = draft.publish({})
    file = artefact.path / "artefact.json"
    file.write_bytes(atomic.seal({**atomic.unseal(file, file.read_bytes()), "format": 2}))
    with pytest.raises(NewerFormat, match="format 2, this version reads up to 1; upgrade"):
        Artefact.open(artefact.path)


def test_outputs_and_pointers(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "outputs")
    path = outputs.artefact_dir("activations", "code.1.mlp_out", "0f" * 32)
    assert path == tmp_path / "outputs/artefacts/activations/code.1.mlp_out-0f0f0f0f0f0f"
    assert outputs.published("activations", "code.1.mlp_out", "0f" * 32) is None
    with open_draft(path) as draft:
        assert outputs.published("activations", "code.1.mlp_out", "0f" * 32) is None
        artefact = draft.publish({})
    found = outputs.published("activations", "code.1.mlp_out", "0f" * 32)
    assert found is not None and found.identity == "0f" * 32
    assert outputs.published("activations", "code.1.mlp_out", "0f0f0f0f0f0f" + "a" * 52) is None
    pointers = outputs.pointers("demo")
    assert pointers.get("tokens") is None and list(pointers.items()) == []
    threads = [threading.Thread(target=pointers.set, args=(f"node{i}", artefact)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    relative = "artefacts/activations/code.1.mlp_out-0f0f0f0f0f0f"
    assert list(pointers.items()) == [(f"node{i}", relative) for i in range(8)]
    assert outputs.study_dir("demo") / "current.json" == tmp_path / "outputs/demo/current.json"
    assert Artefact.open(outputs.root / (pointers.get("node3") or "")).key == "code.1.mlp_out"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_console_shows_share_rate_and_time_left_and_throttles_itself() -> None:
    now, stream = [0.0], io.StringIO()
    console = Console("harvest", stream=stream, clock=lambda: now[0])
    for done in range(0, 2_000_001, 1000):
        now[0] = done / 50_000
        console.update(done, 2_000_000, "tokens", loss=0.123456)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # at 0, 15, 30 and the end at 40 seconds
    assert lines[1] == "harvest   37.5 %  750k/2M tokens  50k tokens/s  0:25 left  loss 0.1235"
    assert lines[3] == "harvest  100.0 %  2M/2M tokens  50k tokens/s  took 0:40  loss 0.1235"


def test_console_rewrites_its_line_on_a_terminal_and_starts_anew_with_a_new_task() -> None:
    now, stream = [0.0], Terminal()
    console = Console(stream=stream, clock=lambda: now[0])
    for done, total in ((0, 10), (5, 10), (10, 10), (1, 4), (4, 4)):
        console.update(done, total, "shards")
        now[0] += 3700
    first, second = stream.getvalue().split("\n")[:2]
    assert first.split("\r")[2].startswith(" 50.0 %  5/10 shards  0.001351 shards/s  1:01:40 left")
    assert second.split("\r")[1].startswith(" 25.0 %  1/4 shards") and second.rstrip().endswith("took 1:01:40")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999.4, "999.4"), (999.6, "1k"), (999_400, "999k"), (999_968, "1M"), (2e12, "2T")],
)
def test_counts_are_short_and_never_a_thousand_of_a_unit(value, text):
    assert human(value) == text
