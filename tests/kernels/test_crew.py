"""Threads that divide work, and leave the number of threads of all others as it is."""

import os
import threading

import pytest
import torch
from kernel_doubles import make_batch, make_optimiser, make_state, topk_objective

from sae_pipeline.kernels import cpu, crew, train_step


@pytest.fixture(autouse=True)
def new_crews():
    crew.crew_of.cache_clear()
    yield
    crew.crew_of.cache_clear()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_cover_everything_once_and_none_is_empty(size):
    for count in (1, 2, 3, 10, 100):
        parts = crew.crew_of(size).parts(count)
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
        assert len(parts) == min(size, count) and all(part.start < part.stop for part in parts)


def test_each_part_has_a_thread_of_its_own_on_which_an_operation_takes_one():
    together, meeting = crew.crew_of(3), threading.Barrier(3, timeout=60)

    def work(item):
        meeting.wait()  # broken unless all three are at work at once
        return item, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    done = together.lead(lambda: together.each(work, "abc"))
    assert [item for item, *_ in done] == ["a", "b", "c"]
    assert len({thread for _, thread, *_ in done} - {threading.get_ident()}) == 3
    assert {found[2:] for found in done} == {(1, False)}


def test_the_number_of_threads_stays_what_it_was_for_the_caller_and_for_threads_to_come():
    torch.set_num_threads(3)
    together = crew.crew_of(3)
    assert together.lead(lambda: together.each(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
    found = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [3, 3]
    torch.set_num_threads(2)  # of the process: a crew's threads keep their one
    assert together.lead(lambda: together.each(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_one_part_is_raised_when_no_other_is_at_work(bad):
    together, finished = crew.crew_of(3), []
    failed = threading.Event()

    def work(item):
        if item == bad:
            failed.set()
            raise ValueError(f"part {item}")
        assert failed.wait(60)
        finished.append(item)

    with pytest.raises(ValueError, match=f"part {bad}"):
        together.lead(lambda: together.each(work, range(3)))
    assert sorted(finished) == [item for item in range(3) if item != bad]
    assert together.lead(lambda: together.each(str, range(3))) == ["0", "1", "2"]


def test_an_error_within_a_step_reaches_the_caller(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(cpu, "decode", lambda support, W_dec: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_step(make_state(), make_batch(0), topk_objective(), make_optimiser(), lr=1e-2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # what Python 3.12 says is what is tested
def test_a_forked_process_makes_a_crew_of_its_own():
    together = crew.crew_of(2)
    assert together.lead(lambda: together.each(str, range(2))) == ["0", "1"]
    child = os.fork()
    if child == 0:
        again = crew.crew_of(2)
        found = again.lead(lambda: again.each(str, range(2)))
        os._exit(0 if again is not together and found == ["0", "1"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
