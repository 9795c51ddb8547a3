"""The weights, batches and settings that every package is given: NumPy arrays in float64, made from a seed.

Each is drawn so that no comparison hangs on rounding: nothing lies on a threshold, no two candidates tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

B, D, N, K = 16, 8, 32, 4


@dataclass
class Scenario:
    """Parameters p by name, rows x and further rows `fresh` [B, D], and the settings.

    p: W_enc (N, D), b_enc (N,), W_dec (N, D), b_pre (D,); of a gated one also r_mag and b_mag (N,); of a JumpReLU
    theta (N,), with its kernel's `bandwidth`. gradient: what W_dec's is taken to be where it is projected. dead: mask
    (N,). weight: λ of L1.
    """

    p: dict[str, np.ndarray]
    x: np.ndarray
    fresh: np.ndarray
    gradient: np.ndarray
    dead: np.ndarray
    k: int = K
    k_aux: int = D // 2
    prefixes: tuple[int, ...] = (N // 4, N // 2, N)
    weight: float = 0.3
    bandwidth: float = 0.5
    target_l0: float = 5.0


def draw(seed: int = 0) -> Scenario:
    """Every parameter away from 0, decoder rows of unit norm."""
    g = np.random.default_rng(seed)
    W_dec = g.standard_normal((N, D))
    p = {
        "W_enc": g.standard_normal((N, D)) / D**0.5,
        "b_enc": 0.1 * g.standard_normal(N),
        "W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True),
        "b_pre": 0.3 * g.standard_normal(D),
        "r_mag": 0.2 * g.standard_normal(N),
        "b_mag": 0.2 * g.standard_normal(N),
        "theta": g.uniform(0.4, 0.9, N),
    }
    x, fresh = (g.standard_normal((B, D)) + 0.5 for _ in range(2))
    return Scenario(p, x, fresh, g.standard_normal((N, D)), np.zeros(N, bool))


def free() -> Scenario:
    """Decoder rows of other norms than 1."""
    s = draw(1)
    s.p["W_dec"] *= np.random.default_rng(2).uniform(0.5, 1.5, (N, 1))
    return s


def few() -> Scenario:
    """Rows with fewer than k positive pre-activations; k = n, so that ties at 0 leave no choice of what is selected."""
    s = draw(3)
    s.p["b_enc"] -= 1.2
    s.k = N
    return s


def dying(count: int) -> Scenario:
    """The first `count` latents lie far below the k that are selected; some of their pre-activations are positive."""
    s = draw(4)
    s.dead[:count] = True
    s.p["b_enc"] += np.where(s.dead, -0.3, 2.5)
    s.p["W_enc"][s.dead] *= 0.6
    return s


def scenarios() -> SimpleNamespace:
    """All of them by name."""
    return SimpleNamespace(plain=draw(), free=free(), few=few(), dying=dying(12), two_dying=dying(2))
