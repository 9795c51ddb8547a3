"""The geometric median: the point with the least summed distance to the rows of a sample."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def geometric_median(x_rd: npt.NDArray[np.floating], *, tolerance: float = 1e-9, max_steps: int = 500) -> Floats:
    """The geometric median (d,) of rows (r, d), in float64.

    Weiszfeld's iteration with the step of Vardi & Zhang (2000, PNAS 97) for an iterate that lies on a row; it stops
    when a step is below `tolerance` times the mean distance.
    """
    origin = np.asarray(x_rd, np.float64).mean(0)
    centred_rd: Floats = x_rd - origin  # near zero the expanded squares below lose nothing
    squares_r = np.einsum("rd,rd->r", centred_rd, centred_rd)
    y_d = np.zeros_like(origin)
    for _ in range(max_steps):
        step_d, scale = _step(centred_rd, squares_r, y_d)
        y_d = y_d + step_d
        if np.linalg.norm(step_d) <= tolerance * scale:
            break
    return np.asarray(y_d + origin)


def _step(x_rd: Floats, squares_r: Floats, y_d: Floats) -> tuple[Floats, float]:
    distance_r = np.sqrt(np.maximum(squares_r - 2 * (x_rd @ y_d) + y_d @ y_d, 0))
    scale = float(distance_r.mean())
    on_row_r = distance_r <= 1e-12 * scale
    if on_row_r.all():
        return np.zeros_like(y_d), scale
    weight_r = np.where(on_row_r, 0.0, 1 / np.where(on_row_r, 1.0, distance_r))
    pull_d = weight_r @ x_rd - weight_r.sum() * y_d
    pull = float(np.linalg.norm(pull_d))
    held = int(on_row_r.sum())
    # Rows at the iterate hold it with a force of one each.
    share = max(0.0, 1 - held / pull) if held and pull > 0 else 1.0
    return share * pull_d / weight_r.sum(), scale
