"""Do these points identify this law? Reasons to refuse a fit, before it is made and after."""

import numpy as np

from sae_pipeline.scaling.fitting import Law, Points
from sae_pipeline.scaling.forms import LawForm
from sae_pipeline.scaling.intervals import Intervals

_NOT_THERE = 1e-6
"""An irreducible term below this share of the lowest loss has run off to zero."""

_EXPONENTS = {"L_N": ("beta",), "L_NK": ("n_exponent_at_centre", "interaction_nk")}


def reason_before(form: LawForm, points: Points) -> str | None:
    """Why too few points, sizes or k are there to fit the form and have a check left; None where there are enough."""
    sizes, ks = len(np.unique(points.n_m)), len(np.unique(points.k_m))
    if form.joint:
        cells = len(np.unique(np.stack([points.n_m, points.k_m], axis=1), axis=0))
        if ks < 3:
            return f"{ks} distinct k: the joint form needs 3 to show that its terms are powers of k"
        needed_sizes = 4 if form.irreducible else 3
        if sizes < needed_sizes:
            return f"{sizes} distinct n: the joint form {form.label} needs {needed_sizes} (one more than it has per k)"
        if cells <= form.n_parameters:
            return f"{cells} distinct (n, k) for {form.n_parameters} parameters: {form.n_parameters + 1} are needed"
        return None
    if ks > 1:
        return f"{ks} distinct k: {form.label} is a law at one k"
    if sizes <= form.n_parameters:
        return f"{sizes} distinct n for {form.n_parameters} parameters: {form.n_parameters + 1} are needed"
    return None


def reason_after_fit(law: Law) -> str | None:
    """Why a fit is none: its irreducible term has run off to 0, or no optimum was reached."""
    if _irreducible_gone(law):
        return "the irreducible term is pinned at 0: the fit without it is as good"
    if not law.converged:
        return f"no start came to rest (objective {law.objective:.3g}): the points leave a direction open"
    return None


def reason_after_intervals(law: Law, intervals: Intervals) -> str | None:
    """Why a fit says nothing: no irreducible term to be seen, an unbounded interval, an exponent of either sign."""
    for name, (low, high) in intervals.bounds.items():
        if name == "irreducible" and low == 0.0:
            return f"the 95 % interval of the irreducible term, [0, {high:.4g}], reaches 0: it may not be there"
        if not (np.isfinite(low) and np.isfinite(high)):
            return f"the 95 % interval of {name} is unbounded ([{low:.4g}, {high:.4g}])"
    for name in _EXPONENTS[law.form.name]:
        low, high = intervals.bounds[name]
        if low <= 0.0 <= high:
            return f"the 95 % interval of {name}, [{low:.4g}, {high:.4g}], holds both signs"
    return None


def _irreducible_gone(law: Law) -> bool:
    if not law.form.irreducible:
        return False
    log_e_m = law.form.designs(law.points.x_m, law.points.y_m)[1] @ law.theta_p[law.form.n_reducible :]
    return bool(np.exp((log_e_m - law.points.log_value_m).max()) <= _NOT_THERE)
