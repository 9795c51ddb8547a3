import numpy as np
import pandas as pd
import pytest

from sae_pipeline.scaling import audit_draft, audit_frame, fit_study, read_result, scaling_points, write_result
from sae_pipeline.store import Artefact, Draft
from sae_pipeline.study import ScalingConfig

SIZES = (256, 512, 1024, 2048, 4096)
KS = (4, 8, 16)


def law(n, k, irreducible=0.0):
    return np.exp(0.3 - 0.25 * np.log(k) - 0.1 * np.log(n) - 0.05 * np.log(k) * np.log(n)) + irreducible * k**-0.3


def make_points(sizes=SIZES, ks=KS, *, target="nmse", recipe="topk", noise=1e-3, irreducible=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "autoencoder": f"{recipe}-n{n}-k{k}",
            "recipe": recipe,
            "n": n,
            "k": k,
            "seed": 0,
            "target": target,
            "value": law(n, k, irreducible) * np.exp(noise * rng.standard_normal()),
            "se": 1e-3,
        }
        for k in ks
        for n in sizes
    ]
    return pd.DataFrame(rows)


def config(**changes):
    return ScalingConfig(**{"targets": ["nmse"], "resamples": 60, **changes})


@pytest.fixture(scope="module")
def result():
    return fit_study(make_points(irreducible=0.3, noise=2e-4), config(), seed=0)


def value_of(fits, fit_id, parameter):
    row = fits[(fits["fit_id"] == fit_id) & (fits["parameter"] == parameter)]
    assert len(row) == 1
    return row.iloc[0]


def test_every_form_and_k_is_a_fit_or_a_refusal(result):
    expected = {f"nmse/topk/L_N{e}/k{k}" for e in ("", "+e") for k in KS} | {"nmse/topk/L_NK", "nmse/topk/L_NK+e"}
    assert set(result.fits["fit_id"]) | set(result.refusals["fit_id"]) == expected
    assert not set(result.fits["fit_id"]) & set(result.refusals["fit_id"])
    assert result.fits["value"].notna().all()
    assert (result.refusals["reason"].str.len() > 20).all()


def test_truth_lies_in_the_intervals_and_the_true_form_extrapolates_better(result):
    row = value_of(result.fits, "nmse/topk/L_N+e/k8", "beta")
    truth = -0.1 - 0.05 * np.log(8)
    assert row["ci_lo"] <= truth <= row["ci_hi"]
    assert row["preferred"]
    plain = value_of(result.fits, "nmse/topk/L_N/k8", "beta")
    assert not plain["preferred"]
    assert abs(row["hold_out_log_error"]) < abs(plain["hold_out_log_error"])
    assert plain["hold_out_log_error"] < 0, "a law that ignores the irreducible loss promises too much"


def test_predictions_hold_grid_points_and_hold_outs(result):
    one = result.predictions[result.predictions["fit_id"] == "nmse/topk/L_NK"]
    assert set(one["kind"]) == {"grid", "point", "held_out"}
    grid = one[one["kind"] == "grid"]
    assert set(grid["k"]) == set(KS)
    assert grid["n"].max() == pytest.approx(4 * max(SIZES))
    assert ((grid["lo"] <= grid["value"]) & (grid["value"] <= grid["hi"])).all()
    point = one[one["kind"] == "point"]
    assert len(point) == len(SIZES) * len(KS)
    assert point["log_residual"].to_numpy() == pytest.approx(np.log(point["value"] / point["observed"]))
    held = one[one["kind"] == "held_out"]
    assert set(held["n"]) == {max(SIZES)}
    error = value_of(result.fits, "nmse/topk/L_NK", "interaction_nk")["hold_out_log_error"]
    assert held["log_residual"].mean() == pytest.approx(error)


def refusal(points, fit_id, **changes):
    found = fit_study(points, config(**changes), seed=0)
    row = found.refusals[found.refusals["fit_id"] == fit_id]
    assert len(row) == 1, found.refusals
    return row.iloc[0]["reason"]


def test_three_points_for_three_parameters_are_refused():
    reason = refusal(make_points(sizes=SIZES[:3], irreducible=0.3), "nmse/topk/L_N+e/k8")
    assert reason == "3 distinct n for 3 parameters: 4 are needed"
    assert "needs 4" in refusal(make_points(sizes=SIZES[:3], irreducible=0.3), "nmse/topk/L_NK+e")


def test_repeated_seeds_do_not_replace_sizes():
    points = pd.concat([make_points(sizes=SIZES[:2], seed=s).assign(seed=s) for s in range(4)], ignore_index=True)
    assert "2 distinct n for 2 parameters" in refusal(points, "nmse/topk/L_N/k8")


def test_joint_form_with_two_k_is_refused():
    assert "2 distinct k" in refusal(make_points(ks=(4, 8)), "nmse/topk/L_NK", forms=["L_NK"])


def test_irreducible_term_that_the_points_do_not_show_is_refused():
    reason = refusal(make_points(ks=(8,), noise=3e-3), "nmse/topk/L_N+e/k8")
    assert "pinned at 0" in reason or "reaches 0" in reason or "unbounded" in reason


def test_noise_without_trend_is_refused_as_an_exponent_of_both_signs():
    points = make_points(ks=(8,))
    points["value"] = 0.2 * np.exp(0.02 * np.random.default_rng(6).standard_normal(len(points)))
    assert "holds both signs" in refusal(points, "nmse/topk/L_N/k8")


def test_unidentified_interaction_is_refused():
    """Curves that are parallel in the logs have no interaction; noise must not be sold as one."""
    points = make_points()
    rng = np.random.default_rng(2)
    points["value"] = points["n"] ** -0.2 * points["k"] ** -0.4 * np.exp(0.01 * rng.standard_normal(len(points)))
    assert "interaction_nk" in refusal(points, "nmse/topk/L_NK", forms=["L_NK"], irreducible="without")


def test_recipe_without_k_is_refused_once_per_form():
    points = make_points(ks=(8,), recipe="relu").assign(k=None)
    found = fit_study(points, config(), seed=0)
    assert len(found.fits) == 0 and len(found.refusals) == 4
    assert found.refusals["reason"].str.contains("no fixed k").all()
    assert list(found.predictions.columns)[:2] == ["fit_id", "kind"]


def test_values_without_a_logarithm_are_left_out_and_named():
    points = make_points(ks=(8,), target="dce")
    points.loc[0, "value"] = -0.01
    points.loc[1, "value"] = np.nan
    found = fit_study(points, config(targets=["dce"]), seed=0)
    left_out = found.points[~found.points["used"]]
    assert len(left_out) == 2
    assert left_out["reason"].notna().all()
    assert found.points["used"].sum() == 3
    assert "3 distinct n" in refusal(points, "dce/topk/L_N+e/k8", targets=["dce"])


def test_other_points_and_row_order_do_not_change_a_fit(result):
    points = make_points(irreducible=0.3, noise=2e-4)
    alone = fit_study(points[points["k"] == 8].sample(frac=1, random_state=3), config(forms=["L_N"]), seed=0)
    both = [
        frame[frame["fit_id"] == "nmse/topk/L_N+e/k8"].reset_index(drop=True) for frame in (alone.fits, result.fits)
    ]
    pd.testing.assert_frame_equal(both[0], both[1], check_exact=True)


def test_hold_out_that_cannot_be_made_says_why():
    found = fit_study(make_points(sizes=SIZES[:3], ks=(8,), noise=1e-4), config(forms=["L_N"], resamples=400), seed=0)
    row = value_of(found.fits, "nmse/topk/L_N/k8", "beta")
    assert np.isnan(row["hold_out_log_error"])
    assert row["hold_out_reason"].startswith("without n = 1024: 2 distinct n")


def test_result_survives_its_artefact(result, tmp_path):
    path = tmp_path / "scaling"
    with Draft.open(path, stage="scaling", key="site", identity="0" * 64, lineage={}) as draft:
        summary = write_result(draft, result)
        pd.testing.assert_frame_equal(audit_draft(draft), audit_frame(result))
        draft.publish(summary)
    again = read_result(Artefact.open(path))
    for name in ("fits", "predictions", "points", "refusals"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), check_exact=True)
    assert summary["fits"] + summary["refusals"] == 8


def test_audit_counts_what_a_sound_fit_never_has(result):
    sound = audit_frame(result)
    assert (sound["outside_interval"] == 0).all() and (sound["non_finite"] == 0).all()
    assert len(sound) == result.fits["fit_id"].nunique()
    broken = result.fits.copy()
    broken.loc[0, "value"] = np.nan
    broken.loc[1, "ci_hi"] = broken.loc[1, "ci_lo"] - 1
    found = audit_frame(type(result)(broken, result.predictions, result.points, result.refusals))
    assert found["non_finite"].sum() == 1 and found["outside_interval"].sum() == 1


def test_audit_shows_points_that_nothing_explains(result):
    assert (audit_frame(result)["unexplained"] == 0).all()
    refused = fit_study(make_points(sizes=SIZES[:2]), config(), seed=0)
    assert len(audit_frame(refused)) == 1 and audit_frame(refused)["unexplained"].item() == 0
    forgotten = type(refused)(refused.fits, refused.predictions, refused.points, refused.refusals.iloc[:0])
    assert audit_frame(forgotten)["unexplained"].item() == 1


def test_points_come_from_the_tables_of_a_site():
    metrics = pd.DataFrame(
        [
            ("topk-n256-k4", "a", "nmse", "all", 0.3, 0.01),
            ("topk-n256-k4", "a", "nmse", "without_position_0", 0.4, 0.01),
            ("topk-n256-k4", "a", "dce", "all", 0.5, 0.02),
            ("topk-n256-k4", "a", "l0", "all", 4.0, 0.0),
            ("topk-n256-k4", "old version", "nmse", "all", 0.9, 0.01),
        ],
        columns=["autoencoder", "sae_id", "metric", "variant", "value", "se"],
    )
    saes = pd.DataFrame(
        {"autoencoder": ["topk-n256-k4"], "sae_id": ["a"], "recipe": "topk", "n": 256, "k": 4, "seed": 0, "lr": 1e-3}
    )
    points = scaling_points(metrics, saes, ("nmse", "dce"))
    assert points["value"].tolist() == [0.3, 0.5] and points["target"].tolist() == ["nmse", "dce"]
    assert fit_study(points, config(), seed=0).refusals["reason"].str.contains("distinct n|distinct k").all()


def test_missing_column_is_named():
    with pytest.raises(ValueError, match="lack the columns k"):
        fit_study(make_points().drop(columns="k"), config(), seed=0)


def test_a_study_that_asks_for_no_form_says_so_and_passes_its_gate():
    found = fit_study(make_points(irreducible=0.3, noise=2e-4), config(forms=[], hold_out="none"), seed=0)
    assert set(found.points["reason"]) == {"the study asks for no form"}
    assert audit_frame(found)["unexplained"].tolist() == [0]
