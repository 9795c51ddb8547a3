"""Figures of the metrics `ablation` and `shrinkage`: what is drawn is what the tables say."""

import numpy as np
import pandas as pd
import pytest

from sae_pipeline.report import figures, metric_figures


def histograms() -> pd.DataFrame:
    """20 ablations a kind in four bins: latents left, channels right, random at one place."""
    edges = [-0.5, -0.375, -0.25, -0.125]
    counts = {"latents": [12, 8, 0, 0], "channels": [0, 0, 5, 15], "random": [0, 0, 20, 0]}
    rows = [(f"hist_{of}", x, y, 20) for of, n_b in counts.items() for x, y in zip(edges, n_b, strict=True)]
    return pd.DataFrame(rows, columns=["curve", "x", "y", "n"])


def ratios() -> pd.DataFrame:
    return pd.DataFrame({"curve": "ratio_hist", "x": 0.05 * np.arange(61), "y": [2] * 61, "n": 122})


def test_sparsity_of_effects_beside_references_and_noise():
    (axes,) = figures.effect_sparsity(histograms()).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.6, 0.4, 0, 0])
    channels, random, noise = axes.lines
    assert list(channels.get_ydata()) == pytest.approx([0, 0, 0.25, 0.75])
    assert channels.get_xdata()[0] == pytest.approx(-0.5 + 0.125 / 2)
    assert list(random.get_ydata()) == pytest.approx([0, 0, 1, 0])
    assert noise.get_xdata()[0] == pytest.approx(np.log10(0.6366), abs=1e-4)


def test_ratios_of_refined_activations():
    (axes,) = figures.refined_ratios(ratios()).axes
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1) and len(axes.patches) == 61
    assert "3: that and above" in axes.get_xlabel()


def test_nothing_measured_is_said():
    for figure in (figures.effect_sparsity(histograms().iloc[:0]), figures.refined_ratios(ratios().assign(n=0))):
        assert not figure.axes and figure.texts


def test_a_metric_shows_its_figure_and_it_fits():
    class Result:
        curves = pd.concat([histograms(), ratios()], ignore_index=True)

    for metric, title in (("ablation", "sparsity"), ("shrinkage", "ratios")):
        (drawn,) = metric_figures(metric, Result()).items()
        assert drawn[0] == title
        assert len(figures.png_data_uri(drawn[1]())) <= 100_000
