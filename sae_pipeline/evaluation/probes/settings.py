"""What a study may say about its probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from sae_pipeline.evaluation.inputs import Number, Setting
from sae_pipeline.study import EMBEDDED_TASKS

CODES: Final = ("pre", "post")
LARGEST_K: Final = 64


@dataclass(frozen=True)
class Source:
    """Where the tasks come from."""

    def check(self, value: Any) -> str | None:
        """See `Setting`."""
        if isinstance(value, str) and value:
            return None
        return f"takes {EMBEDDED_TASKS!r}, or a .jsonl file, a folder or a glob of them, not {value!r}"


@dataclass(frozen=True)
class Sizes:
    """Numbers of latents, rising."""

    def check(self, value: Any) -> str | None:
        """See `Setting`."""
        whole = isinstance(value, list | tuple) and all(type(k) is int and 1 <= k <= LARGEST_K for k in value)
        if whole and value and all(a < b for a, b in pairwise(value)):
            return None
        return f"takes a rising list of whole numbers from 1 to {LARGEST_K}, not {value!r}"


@dataclass(frozen=True)
class Screen:
    """How many features are fitted."""

    def check(self, value: Any) -> str | None:
        """See `Setting`."""
        return (
            None if value == "all" or (type(value) is int and value >= 1) else f"takes a count or 'all', not {value!r}"
        )


@dataclass(frozen=True)
class Settings:
    """Of the metric `probes`.

    Attributes:
        codes: what of an autoencoder is probed: pre-activations, codes.
        k: sizes of the small probes.
        permutations: of the training labels.
        screen: dense features that are fitted for a task, those whose score test says most; None: all of them.
        ridge: penalty on the slope of a standardised feature, 1 / C of scikit-learn.
    """

    codes: tuple[str, ...] = CODES
    k: tuple[int, ...] = (1, 2, 4, 8, 16)
    permutations: int = 4
    screen: int | None = 256
    ridge: float = 1.0

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Settings:
        """Those of a study, which `Metric.check_parameters` has seen."""
        given = {name: value for name, value in parameters.items() if name != "tasks"}
        for name in ("codes", "k"):
            if name in given:
                given[name] = tuple(given[name])
        if given.get("screen") == "all":
            given["screen"] = None
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, as a study would write them."""
        screen = "all" if self.screen is None else self.screen
        return asdict(self) | {"codes": list(self.codes), "k": list(self.k), "screen": screen}


SETTINGS: Final[dict[str, Setting]] = {
    "tasks": Source(),
    "k": Sizes(),
    "permutations": Number(Settings.permutations, 1, 1000),
    "screen": Screen(),
    "ridge": Number(Settings.ridge, 1e-6, 1e6, whole=False),
}
