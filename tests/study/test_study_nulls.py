"""Naming a null control in a study."""

from pathlib import Path

import pytest

from sae_pipeline.study import StudyError, load_study, null_control

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"


@pytest.mark.parametrize(
    ("weights", "dataset", "name"),
    [
        (None, None, None),
        ("untrained", None, "untrained subject"),
        (None, "gaussian_cov", "gaussian_cov dataset"),
        ("untrained", "gaussian_cov", "untrained subject, gaussian_cov dataset"),
    ],
)
def test_a_study_says_which_null_it_is(weights, dataset, name):
    assert null_control(weights, dataset) == name
    given = {"subject.weights": weights, "dataset.null": dataset}
    assert load_study(SMOKE, [f"{key}={value}" for key, value in given.items() if value]).null == name


def test_the_key_null_is_a_word_in_a_file(tmp_path):
    """To YAML `null` is nothing, as a key too."""
    text = SMOKE.read_text().replace("dataset: {", "dataset: {null: gaussian_cov, ")
    (tmp_path / "study.yaml").write_text(text)
    study = load_study(tmp_path / "study.yaml")
    assert study.dataset.null == "gaussian_cov" and study.corpora[0].name == "stdlib"
    (tmp_path / "block.yaml").write_text(text.replace("{null: gaussian_cov, ", "{~: gaussian_cov, "))
    with pytest.raises(StudyError, match=r"unknown key 'dataset.~'"):
        load_study(tmp_path / "block.yaml")


def test_null_stays_nothing_as_a_value():
    assert load_study(SMOKE, ["subject.revision=null", "dataset={null: null}"]).null is None


def test_unknown_nulls_are_refused():
    with pytest.raises(StudyError, match=r"dataset\.null: Input should be 'gaussian_cov'"):
        load_study(SMOKE, ["dataset.null=gaussian"])
    with pytest.raises(StudyError, match=r"subject\.weights: Input should be 'untrained'"):
        load_study(SMOKE, ["subject.weights=random"])


def test_a_real_study_keeps_its_identities():
    study = load_study(SMOKE)
    assert "null" not in study.dataset.determining() and "weights" not in study.subject.determining()
