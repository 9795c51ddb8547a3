"""Law forms: a loss as a function of the number of latents n and of active latents k.

Every form is one exponential of a linear form in the logarithms, or a sum of two of them (the second is the
irreducible term), so one expression gives values and derivatives of all:

    L_N    L(n)   = α·n^β                                            [+ e]
    L_NK   L(n,k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n)       [+ exp(ζ + η ln k)]

(Gao et al. 2024, §3.1; γ is called `interaction_nk`, because the literature uses γ for three other things.)
Fits run in centred logarithms; `FORMS` and `LawForm.reported` translate to the parameters people quote.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reported:
    """One quoted parameter: `weights_p · theta_p`, exponentiated where `exponential`."""

    name: str
    weights_p: FloatArray
    exponential: bool = False

    def value(self, theta_p: FloatArray) -> float:
        """The quoted value at internal parameters `theta_p`."""
        return float(self.transform(np.asarray(theta_p @ self.weights_p)))

    def transform(self, inner: FloatArray) -> FloatArray:
        """From the linear inner value to the quoted one; monotone."""
        return np.exp(inner) if self.exponential else inner


@dataclass(frozen=True)
class LawForm:
    """A form of law: `name` is "L_N" (one k) or "L_NK" (joint), with or without its irreducible term."""

    name: str
    irreducible: bool

    def __post_init__(self) -> None:
        if self.name not in ("L_N", "L_NK"):
            raise ValueError(f"unknown law form {self.name!r}: known are 'L_N' and 'L_NK'")

    @property
    def joint(self) -> bool:
        """Whether the form describes several k at once."""
        return self.name == "L_NK"

    @cached_property
    def n_reducible(self) -> int:
        """Number of parameters of the reducible term."""
        return 4 if self.joint else 2

    @cached_property
    def n_parameters(self) -> int:
        """Number of free parameters p."""
        return self.n_reducible + (0 if not self.irreducible else 2 if self.joint else 1)

    @property
    def label(self) -> str:
        """Short readable name, e.g. "L_NK+e"."""
        return self.name + ("+e" if self.irreducible else "")

    def designs(self, x_m: FloatArray, y_m: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Designs [m, ·] of the reducible and of the irreducible exponent, from centred ln n and centred ln k."""
        ones = np.ones_like(x_m)
        if self.joint:
            return np.stack([ones, y_m, x_m, x_m * y_m], axis=1), np.stack([ones, y_m], axis=1)
        return np.stack([ones, x_m], axis=1), ones[:, None]

    def log_law(self, theta_rp: FloatArray, x_m: FloatArray, y_m: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Log of the law [r, m] at r parameter vectors, and its derivative [r, m, p]."""
        reducible, irreducible = self.designs(x_m, y_m)
        log_a = theta_rp[:, : self.n_reducible] @ reducible.T
        if not self.irreducible:
            return log_a, np.repeat(reducible[None], len(theta_rp), axis=0)
        log_e = theta_rp[:, self.n_reducible :] @ irreducible.T
        log_l = np.logaddexp(log_a, log_e)
        share_rm1 = np.exp(log_e - log_l)[:, :, None]
        return log_l, np.concatenate([(1.0 - share_rm1) * reducible, share_rm1 * irreducible], axis=2)

    def reported(self, x_mean: float, y_mean: float) -> list[Reported]:
        """Quoted parameters in terms of those of the centred fit, whose logs were centred at `x_mean`, `y_mean`.

        Beside the form's own: `reducible_at_centre`, the reducible loss at the geometric mean of n (and k), since α is
        an extrapolation to n = 1; and for the joint form `n_exponent_at_centre` = β_n + γ·mean(ln k).
        """
        basis = np.eye(self.n_parameters)
        if not self.joint:
            listed = [
                Reported("alpha", basis[0] - x_mean * basis[1], exponential=True),
                Reported("beta", basis[1]),
                Reported("reducible_at_centre", basis[0], exponential=True),
            ]
            return [*listed, Reported("irreducible", basis[2], exponential=True)] if self.irreducible else listed
        listed = [
            Reported("alpha", basis[0] - y_mean * basis[1] - x_mean * basis[2] + x_mean * y_mean * basis[3]),
            Reported("beta_k", basis[1] - x_mean * basis[3]),
            Reported("beta_n", basis[2] - y_mean * basis[3]),
            Reported("interaction_nk", basis[3]),
            Reported("reducible_at_centre", basis[0], exponential=True),
            Reported("n_exponent_at_centre", basis[2]),
        ]
        if not self.irreducible:
            return listed
        return [*listed, Reported("zeta", basis[4] - y_mean * basis[5]), Reported("eta", basis[5])]


FORMS = {form.label: form for form in (LawForm(name, e) for name in ("L_N", "L_NK") for e in (False, True))}
