"""Figures show the numbers of their tables, legibly, and leave matplotlib in a form that fits a page."""

import base64
import itertools
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import synthetic_study as study
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from sae_pipeline.report import DensityHistogram, figures, latent_densities, matched_table, metric_figures
from sae_pipeline.report.figures.style import label_ends, log_axis, new_figure, sequence, styled

KEY = "topk-n1024-k8"


@pytest.fixture(scope="module")
def matched() -> pd.DataFrame:
    return matched_table(study.metrics(), study.autoencoders())


def marked(figure: Figure) -> set[tuple[float, float]]:
    """Places of all single markers of the first axes."""
    found = set()
    for line in figure.axes[0].lines:
        if len(line.get_xdata()) == 1 and line.get_linestyle() == "None":
            found.add((float(line.get_xdata()[0]), float(line.get_ydata()[0])))
    return found


@pytest.mark.parametrize("quantity", ["nmse", "dce"])
def test_plane_shows_every_autoencoder_with_its_interval(matched, quantity):
    figure = figures.plane(matched, quantity, ring=KEY)
    assert {(row["l0"], row[quantity]) for _, row in matched.iterrows()} <= marked(figure)
    bars = {
        (round(segment[:, 1].min(), 9), round(segment[:, 1].max(), 9))
        for container in figure.axes[0].containers
        for collection in container.lines[2]
        for segment in collection.get_segments()
    }
    wanted = {(round(row[f"{quantity}_lo"], 9), round(row[f"{quantity}_hi"], 9)) for _, row in matched.iterrows()}
    assert wanted <= bars
    ringed = matched[matched["autoencoder"] == KEY].iloc[0]
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == 13]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(ringed["l0"], ringed[quantity])]


def test_plane_of_many_recipes_tells_them_apart_and_keeps_their_legend_out_of_the_axes(matched):
    rows = [matched.iloc[[0]].assign(recipe=f"recipe-{i}", autoencoder=f"a{i}", l0=8 + i / 10) for i in range(21)]
    figure = figures.plane(pd.concat(rows, ignore_index=True), "nmse")
    (legend,), (axes,) = figure.legends, figure.axes
    assert axes.get_legend() is None
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles}
    assert len(looks) == 21 == len(legend.get_texts())
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0


def test_plane_falls_back_to_plain_axes_where_values_are_not_positive(matched):
    shifted = matched.assign(dce=matched["dce"] - 0.3)
    assert figures.plane(shifted, "dce").axes[0].get_yscale() == "linear"
    assert figures.plane(matched, "dce").axes[0].get_yscale() == "log"


def test_crowded_labels_do_not_overlap():
    with styled():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1])
        figure.draw_without_rendering()
        label_ends(axes, [(1.0, y, f"{y}", "#000000") for y in (0.5, 0.51, 0.505, 0.2, 0.21, 0.9)])
    figure.draw_without_rendering()
    boxes = sorted(
        (text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)), key=lambda box: box.y0
    )
    assert len(boxes) == 6
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    order = [text.get_text() for text in sorted(axes.texts, key=lambda text: text.get_window_extent().y0)]
    assert order == ["0.2", "0.21", "0.5", "0.505", "0.51", "0.9"]


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-8, 8), decades=st.floats(0.08, 9))
def test_log_axes_have_a_readable_number_of_ticks(low, decades):
    axes = Figure().add_subplot()
    axes.set_xlim(10**low, 10 ** (low + decades))
    axes.set_xscale("log")
    log_axis(axes, "x")
    ticks = axes.xaxis.get_majorticklocs()
    assert 3 <= len(ticks) <= 16
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)


def test_laws_draw_fits_fans_hold_outs_and_residuals():
    result = study.scaling()
    upper, lower = figures.laws(result, "nmse").axes
    grid = result.predictions.query("fit_id == 'nmse/topk/L_N/k8' and kind == 'grid'").sort_values("n")
    lines = [line for line in upper.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    inside = grid[grid["n"] <= 4096 * (1 + 1e-9)]
    assert len(lines) == 3
    assert any(np.array_equal(line.get_ydata(), inside["value"]) for line in lines)
    fans = [
        collection.get_paths()[0].vertices[:, 1] for collection in upper.collections if collection.get_alpha() == 0.16
    ]
    assert any(fan.max() == grid["hi"].max() and fan.min() == grid["lo"].min() for fan in fans)
    held = result.predictions.query("fit_id == 'nmse/topk/L_N/k8' and kind == 'held_out'").iloc[0]
    assert (4096.0, held["value"]) in marked_hollow(upper)
    assert (4096.0, 100 * held["log_residual"]) in marked_hollow(lower)
    points = result.predictions.query("fit_id == 'nmse/topk/L_N/k8' and kind == 'point'")
    assert any(np.allclose(sorted(line.get_ydata()), sorted(100 * points["log_residual"])) for line in lower.lines)


def marked_hollow(axes) -> set[tuple[float, float]]:
    hollow = [line for line in axes.lines if line.get_markersize() == 6.5]
    return {(float(x), float(y)) for line in hollow for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


def test_a_refused_k_keeps_its_points_and_gets_no_line():
    result = study.scaling()
    kept = result.fits[result.fits["fit_id"] != "nmse/topk/L_N/k8"]
    refused = type(result)(kept, result.predictions, result.points, result.refusals)
    upper = figures.laws(refused, "nmse").axes[0]
    solid = [line for line in upper.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert len(solid) == 2
    assert len(marked(upper.figure) - marked_hollow(upper)) == 15


def test_density_histogram_shows_fired_and_silent_latents():
    histogram = DensityHistogram((-3.0, -2.0, -1.0, 0.0), (5.0, 0.0, 2.0), 7, 10_000)
    axes = figures.density_histogram(histogram).axes[0]
    assert sorted(bar.get_height() for bar in axes.patches) == [0.0, 2.0, 5.0, 7.0]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(np.log10(3e-4))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["silent", "1", "10⁻¹", "10⁻²", "10⁻³"]


def test_position_zero_is_shown_at_the_edge_where_it_is_far_off():
    curves = {KEY: pd.DataFrame({"x": [0, 1, 2, 3], "y": [0.001, 0.3, 0.31, 0.32]})}
    axes = figures.by_position(curves, study.autoencoders()).axes[0]
    line, dot = axes.lines
    assert list(line.get_xdata()) == [1, 2, 3]
    assert (dot.get_marker(), dot.get_ydata()[0]) == ("v", 0.3)
    assert "0.001 at position 0" in dot.get_gid()


def test_colours_follow_the_order_of_sizes():
    colours = sequence([4096, 256, 1024, 256])
    assert list(colours) == [256, 1024, 4096] and len(set(colours.values())) == 3
    brightness = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in colours.values()]
    assert brightness == sorted(brightness, reverse=True)


def every_figure() -> dict[str, Callable[[], Figure]]:
    """Every figure by name, as a function that draws it."""
    rng = np.random.default_rng(0)
    site, training = study.site_inputs(), study.training()
    references = pd.DataFrame({"document": [0, 1] * 2, "ablation": ["zero", "zero", "mean", "mean"], "n": [9, 8, 9, 0]})
    densities = latent_densities(site.curves, site.autoencoders)
    one, at_position = {KEY: training[KEY]}, site.curves.query("curve == 'dce_by_position' and autoencoder == @KEY")
    clean_ce = np.where(np.arange(16) == 15, np.nan, rng.random((30, 16)))
    return {
        "document_lengths": lambda: figures.document_lengths(study.report_inputs().documents),
        "context_lengths": lambda: figures.context_lengths({"train": rng.integers(3, 65, 400), "held_out": [64, 3]}),
        "shard_norms": lambda: figures.shard_norms(site.shards),
        "shard_spread": lambda: figures.shard_spread(site.shards.iloc[:1]),
        "loss_by_position": lambda: figures.loss_by_position(clean_ce),
        "ablation_references": lambda: figures.ablation_references(references.assign(ce_sum=[30.0, 31.0, 25.0, 0.0])),
        "channel_spread": lambda: figures.channel_spread(rng.standard_normal((500, 24))),
        "spectrum": lambda: figures.spectrum(rng.standard_normal((500, 24))),
        "error_curves": lambda: figures.error_curves(one, site.autoencoders),
        "dead_curves": lambda: figures.dead_curves(one, site.autoencoders),
        "training_curve": lambda: figures.training_curve(training[KEY], "nmse"),
        "dead_curve": lambda: figures.training_curve(training[KEY], "dead"),
        "density_histogram": lambda: figures.density_histogram(densities[KEY]),
        "density_panels": lambda: figures.density_panels(densities, site.autoencoders.iloc[:4]),
        "histograms": lambda: figures.histograms({"tokens": rng.random(1000)}, x_label="squared error"),
        "position_curve": lambda: figures.position_curve(at_position, "ΔCE"),
        "swaps": lambda: figures.swaps(swap_curves(), 4),
    }


def swap_curves() -> pd.DataFrame:
    """NMSE 1/k′ up to 16 latents; of thresholds the same at half as many places."""
    rows = [("progressive_k", k, 1.0 / max(k, 1)) for k in range(17)]
    for theta, l0 in ((0.1, 20.0), (0.2, 16.0), (0.4, 4.0), (0.8, 0.5)):
        rows += [("threshold_nmse", theta, 1 / l0), ("threshold_l0", theta, l0)]
    return pd.DataFrame(rows, columns=["curve", "x", "y"])


def test_swaps_lie_on_one_plane_within_what_was_measured():
    (axes,) = figures.swaps(swap_curves(), 4).axes
    topk, thresholds, trained = axes.lines
    assert topk.get_xydata().tolist() == [[k, 1 / k] for k in range(1, 17)]
    assert sorted(thresholds.get_xydata().tolist()) == [[4, 1 / 4], [16, 1 / 16]]
    assert set(trained.get_xdata()) == {4}
    without = figures.swaps(swap_curves().query("curve == 'progressive_k'"), None).axes[0]
    assert len(without.lines) == 1


def test_every_figure_fits_dagster_and_the_page():
    for name, draw in every_figure().items():
        figure = draw()
        uri = figures.png_data_uri(figure)
        assert uri.startswith("data:image/png;base64,") and len(uri) <= 100_000, name
        assert base64.b64decode(uri.split(",", 1)[1])[:8] == b"\x89PNG\r\n\x1a\n"
        text = figures.svg(figure, name)
        assert text.startswith("<svg viewBox=") and "://" not in text and "<metadata" not in text, name
        assert all(anchor.startswith(name) for anchor in re.findall(r' id="([^"]*)"', text)), name


def test_the_same_tables_give_the_same_drawing():
    first, second = every_figure(), every_figure()
    for name in ("density_histogram", "document_lengths", "position_curve", "spectrum"):
        assert figures.svg(first[name](), name) == figures.svg(second[name](), name), name


def test_a_large_picture_is_drawn_coarser_until_it_fits():
    figure = Figure(figsize=(5, 5))
    figure.add_subplot().imshow(np.random.default_rng(0).random((200, 200)))
    assert len(figures.png_data_uri(figure, dpi=200)) <= 100_000


def test_empty_tables_give_a_sentence_instead_of_a_picture(matched):
    nothing = study.autoencoders().iloc[:0]
    empty = study.scaling()
    empty = type(empty)(empty.fits.iloc[:0], empty.predictions.iloc[:0], empty.points.iloc[:0], empty.refusals.iloc[:0])
    for figure in (
        figures.plane(matched.iloc[:0]),
        figures.plane(matched.assign(dce=np.nan), "dce"),
        figures.laws(empty),
        figures.error_curves({}, nothing),
        figures.density_panels({}, nothing),
        figures.by_position({}, nothing),
        figures.shard_norms(study.site_inputs().shards.iloc[:0]),
        figures.loss_by_position(np.full((3, 4), np.nan)),
        figures.histograms({"a": [np.nan]}, x_label="x"),
        figures.swaps(swap_curves().iloc[:0], 4),
    ):
        assert not figure.axes and len(figure.texts) == 1


def test_metric_figures_show_one_result():
    class Result:
        curves = study.curves().query("autoencoder == @KEY")
        latent_stats = pd.DataFrame({"latent": range(1024)})
        unit_stats = pd.DataFrame(
            {"metric": "nmse", "variant": ["all", "all", "other"], "num": [1.0, 3.0, 9.0], "den": [2.0, 4.0, 9.0]}
        )

    found = {name: metric_figures(name, Result()) for name in ("reconstruction", "density", "downstream", "unknown")}
    assert [len(drawn) for drawn in found.values()] == [2, 1, 2, 0]
    axes = found["reconstruction"]["nmse_by_document"]().axes[0]
    assert sum(patch.get_data().values.sum() for patch in axes.patches) == 2
    assert found["density"]["density"]().axes[0].get_ylabel() == "latents"


def test_the_room_needs_neither_pyplot_nor_torch():
    code = "import sys, sae_pipeline.report; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
