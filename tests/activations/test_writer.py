"""Tasks beside the computation: their errors, and whose cores they take."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest
import torch

from sae_pipeline.activations.writer import BackgroundTasks

THREADS = 3


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_tasks_leave_the_other_cores_to_the_model() -> None:
    inside, elsewhere = list[int](), list[int]()
    with BackgroundTasks() as tasks:
        for _ in range(3):
            tasks.submit(lambda: inside.append(torch.get_num_threads()))
        here = torch.get_num_threads()
        other = Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert inside == [1, 1, 1]
    assert (here, torch.get_num_threads()) == (THREADS, THREADS)
    assert elsewhere == [THREADS], "a thread begun later, say a reader's, must not inherit the writer's number"


def test_an_error_in_a_task_is_raised_at_the_end() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BackgroundTasks() as tasks:
        tasks.submit(fail)
