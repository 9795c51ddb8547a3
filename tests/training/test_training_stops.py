"""A sample of `make soak`: trainings that are killed and terminated end as if left alone, and one can join them."""

import shutil
import signal

from tests.training import stops


def test_struck_trainings_end_as_if_left_alone_and_one_that_joins_costs_nothing(tmp_path):
    found = stops.strike_trainers(tmp_path, seed=1, terms=4, kills=2)
    assert found["failures"] == []
    assert found["deaths"]["SIGTERM"] >= 4 and found["deaths"]["SIGKILL"] >= 2


def test_lost_and_repeated_steps_would_be_seen(tmp_path, monkeypatch):
    data = stops.rows()
    events = stops.alone(tmp_path, data)
    monkeypatch.setattr(stops.run_module.Run, "save", lambda self: None)  # SIGTERM leaves no checkpoint
    found = [stops.chain(tmp_path, seed, (signal.SIGTERM,), events // 2, data) for seed in range(3)]
    assert any("steps were made" in line for chain in found for line in chain["failures"])
    shutil.copytree(tmp_path / "alone", tmp_path / "other")
    weights = tmp_path / "other" / "plain" / "autoencoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert list(stops.unlike(tmp_path / "alone", tmp_path / "other")) == ["plain/autoencoder.safetensors differs"]
