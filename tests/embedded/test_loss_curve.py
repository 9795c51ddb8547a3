import math
import shutil
from pathlib import Path

import pytest

import sae_pipeline
from sae_pipeline.embedded.loss_curve import LossCurve, curve_from, shipped_curve
from sae_pipeline.store import read_json, write_json_atomic
from sae_pipeline.subjects.source import Source, check_weights, fingerprint, read_config

MODELS = Path(sae_pipeline.__file__).parent / "embedded" / "models"


def test_share_inverts_a_power_law_at_its_runs_and_between_them():
    # nats falls by 0.5 for every factor of 10: log C is linear in nats, so interpolation is exact
    curve = LossCurve((1e12, 1e13, 1e15), (4.5, 4.0, 3.0))
    for more in (0.0, 0.25, 0.5, 1.0, 1.2, 1.5):
        assert curve.share(more) == pytest.approx(10 ** (-more / 0.5), rel=1e-12)
    assert curve.least_share == pytest.approx(1e-3)
    assert math.isnan(curve.share(1.5001))


def test_runs_that_a_cheaper_one_equals_and_dearer_runs_are_left_out():
    curve = curve_from([(1e15, 2.0), (1e12, 4.0), (2e12, 4.1), (1e13, 3.5), (1e14, 3.0)])
    assert curve == LossCurve((1e12, 1e13, 1e14), (4.0, 3.5, 3.0))


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([(1e14, 3.0)], "two runs or more"),
        ([(1e12, 2.9), (1e14, 3.0)], "a cheaper run is as good"),
        ([(-1e12, 4.0), (1e14, 3.0)], "two runs or more"),
    ],
)
def test_runs_that_make_no_curve_are_refused(runs, reason):
    with pytest.raises(ValueError, match=reason):
        curve_from(runs)


def fingerprint_of(folder):
    source = Source(folder.name, folder, None)
    return fingerprint(source, read_config(source), check_weights(source))


def test_a_shipped_model_is_known_by_its_weights(tmp_path):
    for name in ("code-small", "code-medium"):
        shutil.copytree(MODELS / name, tmp_path / name)
    own = {"model": "code-medium", "architecture": "gpt2", "training_flops": 1e14, "nats_per_token": 3.0}
    cheap = {"model": "code-small", "architecture": "gpt2", "training_flops": 1e13, "nats_per_token": 3.5}
    other = {"model": "code-llama", "architecture": "llama", "training_flops": 2e13, "nats_per_token": 2.5}
    runs = [run | {"shipped": True} for run in (own, cheap, other)]
    write_json_atomic(tmp_path / "family.json", {"runs": runs})
    medium = fingerprint_of(MODELS / "code-medium")
    assert shipped_curve(medium, tmp_path) == LossCurve((1e13, 1e14), (3.5, 3.0))
    assert shipped_curve("0" * 64, tmp_path) is None


def test_the_shipped_family_has_a_curve_for_its_sizes():
    runs = read_json(MODELS / "family.json")["runs"]
    for name in ("code-small", "code-medium", "code-large"):
        curve = shipped_curve(fingerprint_of(MODELS / name))
        own = next(run for run in runs if run["model"] == name and run["shipped"])
        assert curve is not None and curve.flops[-1] == own["training_flops"]
        assert curve.share(0.0) == 1.0 and curve.least_share < 0.3
    assert shipped_curve(fingerprint_of(MODELS / "code-llama")) is None
