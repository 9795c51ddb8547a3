"""Does the study make sense: the few statements that a reader checks first, counted from the matched table."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Held:
    """A statement that held in `held` of `of` cases."""

    statement: str
    held: int
    of: int


def sense(matched: pd.DataFrame) -> list[Held]:
    """The statements that can be judged from the table; those without a single case are left out.

    Neighbours in n share recipe, k and seed; neighbours in k share recipe, n and seed.
    """
    fixed_k = matched.dropna(subset=["k"])
    recovered = matched.dropna(subset=["recovered_mean"])
    within = recovered["recovered_mean"].between(0, 1, inclusive="neither")
    found = [
        _falls(fixed_k, "n", ["recipe", "k", "seed"], "NMSE falls from each n to the next at equal k"),
        _falls(fixed_k, "k", ["recipe", "n", "seed"], "NMSE falls from each k to the next at equal n"),
        Held("ΔCE lies between 0 and that of mean ablation", int(within.sum()), len(recovered)),
    ]
    return [held for held in found if held.of]


def _falls(table: pd.DataFrame, along: str, same: list[str], statement: str) -> Held:
    steps = [group.sort_values(along)["nmse"].diff().iloc[1:] for _, group in table.groupby(same, sort=False)]
    differences = pd.concat(steps).dropna() if steps else pd.Series(dtype=float)
    return Held(statement, int((differences < 0).sum()), len(differences))


def best(matched: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The row with the lowest `quantity` for each recipe and k, in the order of the table."""
    known = matched.dropna(subset=[quantity])
    lowest = known.groupby(["recipe", "k"], sort=False, dropna=False)[quantity].idxmin()
    return known.loc[sorted(lowest)]
