"""SIGTERM while the command line trains: all members are checkpointed, and the same command ends as if untouched."""

import os
import signal
import threading

import dagster as dg
import pytest

from assets.interrupts import interrupts_between_steps
from sae_pipeline import training

AFTER = 40  # batches


def _with_a_signal(monkeypatch, number):
    """From now on training gets a signal after some batches."""
    train, asked = training.train, []

    def struck(*given, should_stop, **rest):
        def ask():
            asked.append(None)
            if len(asked) == AFTER:
                os.kill(os.getpid(), number)
            return should_stop()

        return train(*given, should_stop=ask, **rest)

    monkeypatch.setattr(training, "train", struck)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bits(smoke, bench, monkeypatch, number):
    bench.forget("autoencoder")
    with monkeypatch.context() as patch:
        _with_a_signal(patch, number)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    work = bench.graph.workspace
    nodes = work.lineage.of_asset("autoencoder")
    assert not any(bench.is_published(node.name) for node in nodes)
    assert all((work.directory(node) / "checkpoint.safetensors").is_file() for node in nodes)
    assert [run.status for run in bench.instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]
    assert bench.run() is None
    for node in nodes:
        paths = [
            graph.workspace.artefact(node.name).file("autoencoder.safetensors") for graph in (smoke.graph, bench.graph)
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(dg.DagsterExecutionInterruptedError), interrupts_between_steps() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_are_left_alone():
    found = []

    def work():
        with interrupts_between_steps() as came:
            found.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
