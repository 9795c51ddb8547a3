from __future__ import annotations

import numpy as np
import pytest

from sae_pipeline.tokens import window_overlap


def brute(held_out: list[np.ndarray], training: list[np.ndarray], window: int) -> tuple[int, int]:
    seen = {tuple(ids[i : i + window]) for ids in training for i in range(ids.size - window + 1)}
    wanted = [tuple(ids[i : i + window]) for ids in held_out for i in range(ids.size - window + 1)]
    return len(wanted), sum(run in seen for run in wanted)


@pytest.mark.parametrize("window", [1, 3, 8, 64])
def test_overlap_equals_brute_force(window: int) -> None:
    generator = np.random.default_rng(window)
    training = [generator.integers(2000, size=n) for n in (500, 64, 10, 900)]
    # One document copies two stretches of training text, one none; one is shorter than most windows.
    copied = np.concatenate([training[0][100:220], generator.integers(2000, size=30), training[3][5:80]])
    held_out = [copied, generator.integers(2000, size=200), training[2][:5].copy()]
    overlap = window_overlap(held_out, training, window=window)
    assert (overlap.windows, overlap.found) == brute(held_out, training, window)
    assert 0 < overlap.share < 1
    assert overlap.by_document[0] == pytest.approx(
        brute(held_out[:1], training, window)[1] / (copied.size - window + 1)
    )


def test_windows_do_not_cross_training_documents() -> None:
    ids = np.arange(100)
    assert window_overlap([ids[20:90]], [ids[:50], ids[50:]], window=64).found == 0


def test_documents_shorter_than_a_window_have_no_overlap() -> None:
    assert window_overlap([np.arange(10)], [np.arange(10)]).share == 0.0
