"""Gates through Great Expectations: rules over small statistics frames, never over raw activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


@dataclass(frozen=True)
class Rule:
    """One expectation on every row: `column` lies within [minimum, maximum], equals or is at most another column, or
    is empty text. `left_out` says why this one, known by name, does not apply here: then nothing is judged.

    `severity` "block" stops the stage before publication (integrity); "warn" is shown and lets it pass
    (a scientific signature: an honest odd result must be publishable).
    """

    check: str
    column: str
    minimum: float | None = None
    maximum: float | None = None
    severity: Literal["block", "warn"] = "block"
    equals: str | None = None
    at_most: str | None = None
    empty: bool = False
    left_out: str | None = None

    @property
    def limit(self) -> str:
        """The limit as a person reads it, or why there is none."""
        if self.left_out is not None:
            return self.left_out
        if self.empty:
            return "none"
        if self.equals or self.at_most:
            return f"= {self.equals}" if self.equals else f"≤ {self.at_most}"
        if self.minimum == self.maximum:
            return f"= {self.minimum:g}"
        low = None if self.minimum is None else f"≥ {self.minimum:g}"
        high = None if self.maximum is None else f"≤ {self.maximum:g}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Verdict:
    """What became of a rule: the extreme value met, and where it failed (e.g. which shards).

    Of a rule that was left out the value is the text `left out`, and the limit says why.
    """

    check: str
    column: str
    value: float | str | None
    limit: str
    severity: str
    passed: bool
    where: str

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as kept in `gates.json`."""
        return asdict(self)


class ValidatorResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Validates statistics frames against rules with a Great Expectations suite."""

    def validate(
        self, name: str, frames: Mapping[str, pd.DataFrame], rules: Sequence[Rule], index: str | None = None
    ) -> dict[str, list[Verdict]]:
        """Check every rule on every row of every frame, all in one validation (a suite costs about a second).

        Args:
            name: name of the suite, e.g. `activations`.
            frames: by partition; one row per unit (shard, split). Missing and non-finite values fail.
            rules: what must hold.
            index: column that names a row in messages, e.g. `shard`.

        Returns:
            By partition, one verdict per rule.
        """
        judged = [rule for rule in rules if rule.left_out is None]
        whole = _comparable(frames, judged)
        failed = _failed_rows(name, whole, judged)

        def verdict(rule: Rule, part: str) -> Verdict:
            if rule.left_out is not None:
                return _left_out(rule)
            return _verdict(rule, frames[part], failed[rule][whole["_part"] == part], index)

        return {part: [verdict(rule, part) for rule in rules] for part in frames}


def _comparable(frames: Mapping[str, pd.DataFrame], rules: Sequence[Rule]) -> pd.DataFrame:
    """One frame with a row number; missing values, which Great Expectations passes over, become infinite and fail."""
    import pandas as pd

    columns = [name for rule in rules for name in (rule.column, rule.equals, rule.at_most) if name]
    for part, frame in frames.items():
        missing = [column for column in columns if column not in frame]
        if missing:
            raise KeyError(f"the statistics frame of {part} lacks {missing}; it has {list(frame.columns)}")
    texts = {rule.column for rule in rules if rule.empty}
    cleaned = {
        part: pd.DataFrame({column: _clean(frame[column], column in texts) for column in dict.fromkeys(columns)})
        for part, frame in frames.items()
    }
    whole = pd.concat([frame.assign(_part=part) for part, frame in cleaned.items()], ignore_index=True)
    return whole.assign(_row=range(len(whole)))


def _clean(values: pd.Series, text: bool) -> pd.Series:
    return values.fillna("missing").astype("object") if text else values.astype("float64").fillna(float("inf"))


def _failed_rows(name: str, whole: pd.DataFrame, rules: Sequence[Rule]) -> dict[Rule, npt.NDArray[np.bool_]]:
    """For each rule a mask of the rows that break it."""
    import great_expectations as gx
    import numpy as np

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": whole})
    suite = gx.ExpectationSuite(name=name, expectations=[_expectation(gx, rule, i) for i, rule in enumerate(rules)])
    outcome = batch.validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["_row"]}
    )
    failed = {}
    for result in outcome.results:
        mask = np.zeros(len(whole), dtype=bool)
        mask[[entry["_row"] for entry in result.result.get("unexpected_index_list") or []]] = True
        if result.success == mask.any() or result.exception_info.get("raised_exception"):
            raise RuntimeError(f"{name}: Great Expectations could not judge {result.expectation_config}")
        failed[rules[result.expectation_config.meta["rule"]]] = mask
    return failed


def _expectation(gx: Any, rule: Rule, number: int) -> Any:
    meta = {"rule": number}
    if rule.equals is not None:
        return gx.expectations.ExpectColumnPairValuesToBeEqual(column_A=rule.column, column_B=rule.equals, meta=meta)
    if rule.at_most is not None:
        return gx.expectations.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A=rule.at_most, column_B=rule.column, or_equal=True, meta=meta
        )
    if rule.empty:
        return gx.expectations.ExpectColumnValuesToBeInSet(column=rule.column, value_set=[""], meta=meta)
    maximum = rule.maximum if rule.maximum is not None else 1.7e308  # an infinite value must not pass a one-sided rule
    return gx.expectations.ExpectColumnValuesToBeBetween(
        column=rule.column, min_value=rule.minimum, max_value=maximum, meta=meta
    )


def _verdict(rule: Rule, frame: pd.DataFrame, failed: npt.NDArray[np.bool_], index: str | None) -> Verdict:
    named = [str(item) for item in frame[index][failed]] if index else []
    where = f"{index} {', '.join(named[:8])}{' …' if len(named) > 8 else ''}" if named else ""
    worst = frame[rule.column][failed] if failed.any() else frame[rule.column]
    return Verdict(rule.check, rule.column, _worst(rule, worst), rule.limit, rule.severity, not failed.any(), where)


def _left_out(rule: Rule) -> Verdict:
    from sae_pipeline.report.gates import LEFT_OUT

    return Verdict(rule.check, rule.column, LEFT_OUT, rule.limit, rule.severity, True, "")


def _worst(rule: Rule, values: pd.Series) -> float | str | None:
    """The value nearest to, or furthest beyond, the limit; of texts the first."""
    known = values.dropna()
    if known.empty:
        return None
    if rule.empty:
        return str(known.iloc[0])
    one_sided = rule.maximum is None and rule.at_most is None
    return float(known.min() if one_sided else known.max())
