"""A worker in a process of its own, which tests steer by its standard input and output.

`python harvest_process.py SUBJECT_DIR DRAFT_DIR FIRST LAST STICKS_AT SHARD` waits for a line, then harvests shards
FIRST to LAST. It says `stuck` and does nothing more once it is at SHARD: in a `pass` of the model, or between making
the bytes durable and the `record`; with `nowhere` it goes on. It says `waits` when another process has a shard that it
wants, and in the end how many shards it made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from activation_doubles import POST, config_of, make_tokens

from sae_pipeline.activations import Place, harvest_range
from sae_pipeline.activations.passes import Passes
from sae_pipeline.store import ShardedArray
from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects import load_subject


def place(draft_dir: Path) -> Place:
    return Place(draft_dir, "activations", "tiny", "0" * 64, {})


class Watch:
    """Progress that tells the test when this process waits for another."""

    def update(self, done: float, total: float, unit: str, **info: object) -> None:
        if "waits_for" in info:
            print("waits", flush=True)


def stick() -> NoReturn:
    print("stuck", flush=True)
    while True:
        sys.stdin.read(1)


def stick_in_a_pass(shard: int) -> None:
    attempt = Passes._attempt

    def stuck(self: Passes, rows: slice, *rest: Any) -> Any:
        made = attempt(self, rows, *rest)
        if rows.start == shard * SHARD_ROWS:
            stick()
        return made

    Passes._attempt = stuck  # type: ignore[method-assign]


def stick_before_the_record(shard: int) -> None:
    commit = ShardedArray._commit

    def stuck(self: ShardedArray, i: int, record: dict[str, Any]) -> None:
        if i == shard:
            stick()
        commit(self, i, record)

    ShardedArray._commit = stuck  # type: ignore[method-assign]


SHARD_ROWS = 64
POINTS = {"pass": stick_in_a_pass, "record": stick_before_the_record, "nowhere": lambda _: None}


def main(subject_dir: str, draft_dir: str, first: str, last: str, point: str, shard: str) -> None:
    torch.set_num_threads(1)
    subject = load_subject(
        SubjectConfig(alias="tiny", id=subject_dir, dtype="float32", device="cpu"), root=Path(subject_dir)
    )
    POINTS[point](int(shard))
    print("ready", flush=True)
    sys.stdin.readline()
    made = harvest_range(
        subject,
        make_tokens(),
        {POST: place(Path(draft_dir))},
        config_of(),
        shards=range(int(first), int(last)),
        progress=Watch(),
    )
    print(made, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
