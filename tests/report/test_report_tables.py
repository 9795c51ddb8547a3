"""What the tables are computed from: numbers as text, matched rows, verdicts, statements."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import synthetic_study as study

from sae_pipeline.report import by_autoencoder, latent_densities, matched_table
from sae_pipeline.report.formatting import measured, number, readable, share
from sae_pipeline.report.gates import gate_table, tally, verdict
from sae_pipeline.report.sense import best, sense


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"), (float("nan"), "—"), (0.34321, "0.343"), (-0.117, "−0.117"), (1234, "1,234"), (np.int64(7), "7"),
        (2.0, "2"), (24.13, "24.1"), (1234.5, "1,234"), (2.5e-5, "2.5·10⁻⁵"), (1e-6, "10⁻⁶"), (float("-inf"), "−∞"),
        (0, "0"), (True, "True"), ("paper", "paper"), (np.float64(0.5), "0.500"), (9.9999e-5, "10⁻⁴"),
        (0.99999, "1.00"),
    ],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("triple", "texts"),
    [
        ((0.34321, 0.34111, 0.34531), ("0.3432", "±0.0021")),
        ((12.345, 10.0, 14.0), ("12.3", "±2.0")),
        ((1500.0, 1300.0, 1700.0), ("1,500", "±200")),
        ((0.5, float("nan"), float("nan")), ("0.500", "")),
        ((8.0, 8.0, 8.0), ("8", "")),
        ((float("nan"), 0.1, 0.2), ("—", "")),
    ],
)
def test_digits_follow_the_interval(triple, texts):
    assert measured(*triple) == texts


def test_shares_and_ticks():
    assert [share(x) for x in (0.0, 0.0005, 0.125, 1.0, float("nan"))] == ["0 %", "0.050 %", "12.5 %", "100 %", "—"]
    ticks = {0: "0", 0.25: "0.25", 1024: "1,024", 20_000: "20k", 5e6: "5M", 1e-4: "10⁻⁴", -1.5: "−1.5", 2e-5: "2·10⁻⁵"}
    assert [readable(x) for x in ticks] == list(ticks.values())


def test_matched_table_holds_the_metrics_and_keeps_equal_k_together():
    metrics = study.metrics()
    matched = matched_table(metrics, study.autoencoders())
    lookup = metrics.set_index(["autoencoder", "metric", "variant"])
    for row in matched.itertuples():
        assert row.nmse == lookup.loc[(row.autoencoder, "nmse", "all"), "value"]
        assert row.dce_lo == lookup.loc[(row.autoencoder, "dce", "all"), "ci_lo"]
        assert row.recovered_mean == lookup.loc[(row.autoencoder, "loss_recovered", "mean"), "value"]
        assert np.isnan(row.dead_lo)
    order = [(row.recipe, row.k, row.n) for row in matched.itertuples()]
    assert order[:15] == [("topk", k, n) for k in study.SPARSITIES for n in study.SIZES]
    assert [row[0] for row in order[15:]] == ["relu"] * 3


def test_matched_table_shows_no_value_of_a_failed_metric():
    metrics = study.metrics()
    metrics.loc[metrics["metric"] == "nmse", ["status", "reason"]] = ["failed", "out of memory"]
    matched = matched_table(metrics, study.autoencoders())
    assert matched["nmse"].isna().all() and (matched["nmse_note"] == "out of memory").all()
    assert matched["dce"].notna().all()


def test_statements_are_counted_over_all_neighbours():
    matched = matched_table(study.metrics(), study.autoencoders())
    worse = (matched["n"] == 1024) & (matched["k"] == 8)
    matched.loc[worse.fillna(False), "nmse"] = 0.9
    value = {(row.n, row.k): row.nmse for row in matched.itertuples() if row.recipe == "topk"}
    along_n = [value[b, k] < value[a, k] for k in study.SPARSITIES for a, b in itertools.pairwise(study.SIZES)]
    along_k = [value[n, b] < value[n, a] for n in study.SIZES for a, b in itertools.pairwise(study.SPARSITIES)]
    counted = [(held.held, held.of) for held in sense(matched)]
    assert counted == [(sum(along_n), 12), (sum(along_k), 10), (18, 18)]
    assert sum(along_n) == 11 and sum(along_k) == 9


def test_best_is_the_lowest_of_each_recipe_and_k():
    matched = matched_table(study.metrics(), study.autoencoders())
    wanted = [f"topk-n4096-k{k}" for k in study.SPARSITIES]
    relu = matched[matched["recipe"] == "relu"]
    assert best(matched, "nmse")["autoencoder"].to_list() == [*wanted, relu.loc[relu["nmse"].idxmin(), "autoencoder"]]


def test_verdicts_follow_severity():
    gates = study.gates().iloc[:3].assign(severity=["block", "warn", "block"], passed=[False, False, True])
    assert verdict(gates).to_list() == ["failed", "warning", "passed"]
    assert tally(gates) == {"failed": 1, "warning": 1, "passed": 1}
    assert tally(gates.iloc[:0]) == {"failed": 0, "warning": 0, "passed": 0}


def test_gate_table_puts_misses_first_and_gathers_passes():
    gates = study.gates()
    files = gates.iloc[:2].assign(check="files are as committed", column="damage", value="", limit="none", passed=True)
    mixed = pd.concat([gates, files, gates.iloc[:1].assign(value=None, passed=False)], ignore_index=True)
    rows = [
        [re.sub(r"<[^>]+>", "", text) for text in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", gate_table(mixed))
    ][1:]
    words = [row[0] for row in rows]
    assert words == ["failed", "warning", "warning"] + ["passed"] * (len(words) - 3)
    assert rows[0][4] == "—" and rows[1][4] == "0.270 at held_out"
    nmse = gates[gates["check"] == "better than the mean"]
    gathered = next(row for row in rows if row[2] == "better than the mean")
    assert gathered[4:] == [f"{nmse['value'].min():.3f} … {nmse['value'].max():.3f}", "≤ 1", "blocks", "18"]
    assert next(row for row in rows if row[3] == "damage")[4] == "none"


def test_densities_count_the_silent_latents():
    curves = pd.DataFrame(
        {
            "autoencoder": "a",
            "curve": "density_hist",
            "x": [-2.0, -1.5, -1.0, -0.5],
            "y": [3.0, 1.0, 0.0, 2.0],
            "n": 3000,
        }
    )
    curves["n"] = 3000
    members = pd.DataFrame({"autoencoder": ["a", "b"], "n": [10, 20]})
    found = latent_densities(curves, members)
    assert list(found) == ["a"]
    assert found["a"].edges_log10 == (-2.0, -1.5, -1.0, -0.5, 0.0)
    assert found["a"].silent == 4 and found["a"].bound_log10 == pytest.approx(-3.0)
    assert by_autoencoder(curves, "nmse_by_position") == {}
