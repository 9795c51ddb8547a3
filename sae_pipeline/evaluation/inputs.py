"""What a metric is given, what a metric is, and how its figures become rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.bootstrap import Uncertainty, uncertainty
from sae_pipeline.evaluation.codes_cache import CodesCache
from sae_pipeline.evaluation.errors import CacheMismatch, EvaluationError
from sae_pipeline.evaluation.tables import UNIT_STATS_COLUMNS, MetricResult, frame
from sae_pipeline.store import Progress, silent
from sae_pipeline.subjects import Subject

if TYPE_CHECKING:
    from sae_pipeline.evaluation.probes.probe_data import ProbeData

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MetricInputs:
    """One autoencoder to be measured on one evaluation set.

    Attributes:
        autoencoder_key: its key, the `autoencoder` column.
        sae_id: its identity.
        evaluation_id: identity of the evaluation set.
        autoencoder: the autoencoder, on the device to decode on.
        codes: its code cache.
        evaluation_set: the rows.
        resamples: of the bootstrap.
        seed: of the bootstrap; equal seeds give equal document weights, so results can be compared.
        parameters: the metric's own, from the study.
        subject: the loaded model, for metrics that need it.
        probe_data: the site's probe tasks, for the metric that needs them.
        siblings: by seed the autoencoders that differ from it in nothing else, for the metric that compares them.
        dead: share of latents dead at the end of training and the window in tokens, where training told.
        progress: told how far the work is.
    """

    autoencoder_key: str
    sae_id: str
    evaluation_id: str
    autoencoder: Autoencoder
    codes: CodesCache
    evaluation_set: EvaluationSet
    resamples: int
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)
    subject: Subject | None = None
    probe_data: ProbeData | None = None
    siblings: Mapping[int, Autoencoder] = field(default_factory=dict)
    dead: tuple[float, int] | None = None
    progress: Progress = silent

    def check(self) -> None:
        """Raise CacheMismatch unless codes, autoencoder and evaluation set belong together."""
        if (d := self.autoencoder.config.d) != self.evaluation_set.d:
            raise CacheMismatch(
                f"{self.autoencoder_key} reads {d} values a token; the evaluation set has {self.evaluation_set.d}: "
                f"it is of another subject or site"
            )
        self.codes.check(
            sae_id=self.sae_id,
            evaluation_id=self.evaluation_id,
            n=self.autoencoder.config.n,
            n_rows=self.evaluation_set.n_rows,
        )

    def parameter(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """The values of a parameter, which `Metric.check_parameters` has seen, or the default's."""
        return tuple(self.parameters.get(name, default))

    @property
    def key(self) -> dict[str, Any]:
        """The columns that name the autoencoder in every table."""
        return {"autoencoder": self.autoencoder_key, "sae_id": self.sae_id}


@dataclass(frozen=True)
class Number:
    """A number that a study may set for a metric: its default, the least and the most it may be."""

    default: float
    least: float
    most: float = float("inf")
    whole: bool = True

    def check(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        kind = "a whole number" if self.whole else "a number"
        fits = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        if fits and self.least <= value <= self.most:
            return None
        reach = f"from {self.least:g} to {self.most:g}" if np.isfinite(self.most) else f"of at least {self.least:g}"
        return f"takes {kind} {reach}, not {value!r}"


class Setting(Protocol):
    """What a study may set a parameter to that is no list of names."""

    def check(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric: its name, the version to raise when its results change, and whether it runs the subject.

    `measure` takes autoencoders of one site and evaluation set together, so that what does not depend on the
    autoencoder is computed once; results do not depend on the company. `parameters` holds, by name, the values that a
    study may list under it (default all of them), `numbers` the numbers, and other settings, that it may set.
    """

    name: str
    version: int
    needs_subject: bool
    measure: Callable[[Sequence[MetricInputs]], list[MetricResult]]
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, Setting] = field(default_factory=dict)

    def check_parameters(self, given: Mapping[str, Any]) -> None:
        """Raise EvaluationError if a parameter is unknown, or is not of the values that it may take."""
        for name, values in given.items():
            if name in self.numbers:
                if wrong_number := self.numbers[name].check(values):
                    raise EvaluationError(f"metric {self.name}: {name} {wrong_number}")
                continue
            if name not in self.parameters:
                raise EvaluationError(
                    f"metric {self.name}: the parameter {name!r} is unknown; "
                    f"this metric takes {', '.join([*self.parameters, *self.numbers]) or 'none'}"
                )
            known = self.parameters[name]
            if not isinstance(values, list | tuple) or not values:
                raise EvaluationError(f"metric {self.name}: {name} takes a list of {', '.join(known)}, not {values!r}")
            wrong = [value for value in values if value not in known]
            if wrong:
                raise EvaluationError(f"metric {self.name}: {name} {wrong[0]!r} is not one of {', '.join(known)}")

    def run_many(self, inputs: Sequence[MetricInputs]) -> list[MetricResult]:
        """Measure autoencoders of one evaluation set.

        Raises:
            CacheMismatch: codes, autoencoder and evaluation set do not belong together.
            EvaluationError: several evaluation sets, a wrong parameter, or no subject where one is needed.
        """
        if len({one.evaluation_id for one in inputs}) > 1:
            raise EvaluationError("measure autoencoders of one evaluation set at a time")
        for one in inputs:
            one.check()
            self.check_parameters(one.parameters)
            if self.needs_subject and one.subject is None:
                raise EvaluationError(f"metric {self.name} runs the subject model; pass it in")
        return self.measure(inputs)

    def run(self, inputs: MetricInputs) -> MetricResult:
        """Measure one autoencoder."""
        return self.run_many([inputs])[0]


@dataclass(frozen=True)
class Ratio:
    """One figure Σ num / Σ den over documents, or other units of the name `unit_kind`."""

    metric: str
    variant: str
    num_u: FloatArray
    den_u: FloatArray
    n_u: NDArray[np.int64]
    unit: str
    better: str
    unit_kind: str = "document"

    @cached_property
    def here_u(self) -> NDArray[np.bool_]:
        """The units that have a position in the variant."""
        return self.n_u > 0

    @cached_property
    def value(self) -> float:
        """The ratio over all units; NaN where the denominator is 0."""
        den = float(self.den_u.sum())
        return float(self.num_u.sum()) / den if den else float("nan")


def metric_row(
    inputs: MetricInputs, version: int, metric: str, variant: str, value: float, **columns: Any
) -> dict[str, Any]:
    """One row of the metrics table, without an interval unless `columns` brings one."""
    row = {
        **inputs.key,
        "site": str(inputs.evaluation_set.site),
        "evaluation_id": inputs.evaluation_id,
        "metric": metric,
        "variant": variant,
        "value": value,
        "unit": "1",
        "better": "none",
        "n_units": 0,
        "status": "ok" if np.isfinite(value) else "na",
        "metric_version": version,
    }
    return row | columns


def ratio_tables(
    inputs: MetricInputs, version: int, documents_u: NDArray[np.int64], ratios: Sequence[Ratio]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the metrics table, with intervals over documents, and of unit_stats, for ratios of one set."""
    found = _uncertainties(inputs, ratios)
    rows = [_ratio_row(inputs, version, ratio, doubt) for ratio, doubt in zip(ratios, found, strict=True)]
    stats = [
        pd.DataFrame(
            {
                **inputs.key, "metric": ratio.metric, "variant": ratio.variant, "unit_id": documents_u[ratio.here_u],
                "num": ratio.num_u[ratio.here_u], "den": ratio.den_u[ratio.here_u], "n": ratio.n_u[ratio.here_u],
            }
        )
        for ratio in ratios
    ]  # fmt: skip
    return frame("metrics", rows), pd.concat(stats, ignore_index=True).astype(UNIT_STATS_COLUMNS)


def _uncertainties(inputs: MetricInputs, ratios: Sequence[Ratio]) -> list[Uncertainty]:
    """Ratios over the same documents share their resample weights, so they are resampled together."""
    together: dict[bytes, list[int]] = {}
    for i, ratio in enumerate(ratios):
        together.setdefault(ratio.here_u.tobytes(), []).append(i)
    found: dict[int, Uncertainty] = {}
    for members in together.values():
        here_u = ratios[members[0]].here_u
        num_um, den_um = (
            np.stack([sums[here_u] for sums in columns], axis=1)
            for columns in ([ratios[i].num_u for i in members], [ratios[i].den_u for i in members])
        )
        found |= dict(zip(members, uncertainty(num_um, den_um, inputs.resamples, inputs.seed), strict=True))
    return [found[i] for i in range(len(ratios))]


def _ratio_row(inputs: MetricInputs, version: int, ratio: Ratio, doubt: Uncertainty) -> dict[str, Any]:
    known, bounded = bool(np.isfinite(ratio.value)), bool(np.isfinite(doubt.ci_lo))
    documents = int(ratio.here_u.sum())
    columns: dict[str, Any] = {
        "unit": ratio.unit,
        "better": ratio.better,
        "n_units": documents,
        "unit_kind": ratio.unit_kind,
    }
    if not known:
        reason = "its denominator is 0" if documents else _NOTHING_IN[ratio.unit_kind]
        return metric_row(inputs, version, ratio.metric, ratio.variant, ratio.value, **columns, reason=reason)
    columns |= {"se": doubt.se, "ci_lo": doubt.ci_lo, "ci_hi": doubt.ci_hi}
    columns["status"] = "ok" if bounded else "partial"
    columns["ci_method"] = f"cluster bootstrap, {inputs.resamples} resamples" if bounded else None
    few = f"no interval: {documents} {ratio.unit_kind}, or resamples with denominator 0"
    columns["reason"] = None if bounded else few
    return metric_row(inputs, version, ratio.metric, ratio.variant, ratio.value, **columns)


_NOTHING_IN = {
    "latent": "no sampled latent has it",
    "document": "no position of the evaluation set belongs to the variant",
    "task": "no task belongs to the variant, or none could be measured",
}
