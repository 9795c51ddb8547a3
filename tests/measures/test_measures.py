import math

import numpy as np
import pytest
import torch

from sae_pipeline.measures import Density, Fired, Reconstruction


def _rows(m: int = 60, d: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(m, d, generator=g, dtype=torch.float64) + 5.0
    return x, x + 0.3 * torch.randn(m, d, generator=g, dtype=torch.float64)


def test_predicting_the_mean_has_nmse_one_and_perfection_zero():
    x, _ = _rows()
    mean, perfect = Reconstruction(7), Reconstruction(7)
    mean.update(x, x.mean(0).expand_as(x))
    perfect.update(x, x)
    assert mean.nmse == pytest.approx(1.0, rel=1e-12) and mean.explained_variance == pytest.approx(0.0, abs=1e-12)
    assert perfect.nmse == 0.0 and perfect.cosine == pytest.approx(1.0) and perfect.relative_bias == pytest.approx(1.0)


def test_hand_case_of_saelens_665():
    measure = Reconstruction(2)
    measure.update(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    assert measure.explained_variance == pytest.approx(0.8)
    assert measure.mse == pytest.approx(0.5)


def test_every_figure_equals_numpy_and_ignores_batching_and_order():
    x, x_hat = _rows()
    a, b = x.numpy(), x_hat.numpy()
    norm = np.linalg.norm
    expected = {
        "nmse": ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum(),
        "mse": ((a - b) ** 2).mean(),
        "l2_ratio": (norm(b, axis=1) / norm(a, axis=1)).mean(),
        "relative_bias": (b**2).sum(1).mean() / (a * b).sum(1).mean(),
        "cosine": ((a * b).sum(1) / norm(a, axis=1) / norm(b, axis=1)).mean(),
    }
    for batches in ([slice(0, 60)], [slice(40, 60), slice(0, 1), slice(1, 40)]):
        measure = Reconstruction(7)
        for rows in batches:
            measure.update(x[rows], x_hat[rows])
        for name, value in expected.items():
            assert getattr(measure, name) == pytest.approx(value, rel=1e-12), name


def test_weights_repeat_rows_and_large_means_do_not_cancel():
    x, x_hat = _rows()
    x, x_hat = x + 1e4, x_hat + 1e4
    weights = torch.arange(60) % 3
    weighted, repeated = Reconstruction(7), Reconstruction(7)
    weighted.update(x, x_hat, weights)
    index = torch.repeat_interleave(torch.arange(60), weights)
    repeated.update(x[index], x_hat[index])
    assert weighted.nmse == pytest.approx(repeated.nmse, rel=1e-12) and weighted.n == repeated.n
    centred = ((x[index] - x[index].mean(0)) ** 2).sum()
    assert repeated.nmse == pytest.approx(float(((x - x_hat)[index] ** 2).sum() / centred), rel=1e-6)


def test_nothing_seen_is_nan_and_a_wrong_width_is_refused():
    assert all(math.isnan(getattr(Reconstruction(3), name)) for name in ("nmse", "mse", "cosine", "l2_ratio"))
    with pytest.raises(ValueError, match=r"\[rows, 3\]"):
        Reconstruction(3).update(torch.zeros(2, 4), torch.zeros(2, 4))


def test_density_counts_and_rule_of_three():
    density = Density(4)
    density.update(torch.tensor([0, 2, 2]), 10)
    density.update(torch.tensor([2]), 20)
    assert density.counts_n.tolist() == [1, 0, 3, 0]
    assert density.density().tolist() == pytest.approx([1 / 30, 0, 0.1, 0])
    assert density.silent().tolist() == [False, True, False, True]
    assert density.silent_bound == pytest.approx(0.1)


def test_a_silent_latent_is_dead_exactly_when_the_window_is_full():
    fired, batch, window = Fired(3), 10, 35
    history = []
    for step in range(6):
        latents = [0] if step % 3 else [0, 2, 2]  # latent 1 is silent, latent 2 fires at steps 0 and 3
        fired.update(torch.tensor(latents), batch)
        history.append(fired.dead(window).tolist())
    assert [h[1] for h in history] == [False, False, False, True, True, True]  # 10, 20, 30 < 35 <= 40
    assert not any(h[0] or h[2] for h in history)
    assert fired.tokens_since_fired.tolist() == [0, 60, 20]
