"""What Dagster is told: the materialisation and the checks of each partition, in single and in range runs."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from assets import partitions
from resources import Verdict
from sae_pipeline.store import Artefact

if TYPE_CHECKING:
    from sae_pipeline.planning.lineage import Node

# In a range run checks are logged, not yielded, and Dagster warns that nothing gates the next step. The gate does: what
# fails is not published and the step fails.
logging.getLogger("dagster._core.execution.plan.active").addFilter(
    lambda record: not record.getMessage().startswith("Blocking asset check")
)


class Events:
    """Events of one asset in one run."""

    def __init__(self, context: dg.AssetExecutionContext, key: dg.AssetKey) -> None:
        self.context, self.key = context, key

    def materialized(self, node: "Node", artefact: Artefact, shown: Mapping[str, Any], *, reused: bool) -> None:
        """Log the materialisation of a node's partition; its data version is the artefact's identity."""
        metadata = {
            **shown,
            "identity": artefact.identity[:12],
            "path": dg.MetadataValue.path(str(artefact.path)),
            "size_mb": round(artefact.n_bytes / 1e6, 3),
            "made_at": artefact.created_at,
            "reused": reused,
        }
        key = _partition(node)
        tags = {"dagster/data_version": artefact.identity, **_dimensions(key)}
        self.context.log_event(dg.AssetMaterialization(self.key, partition=key, metadata=metadata, tags=tags))

    def checks(self, node: "Node", verdicts: Sequence[Verdict], single: bool) -> Iterator[Any]:
        """A result per check: yielded in a single run, logged with its partition in a range run (Dagster has none)."""
        target = None if single else self._latest_materialization(node)
        for name, severity in (("integrity", "block"), ("signatures", "warn")):
            chosen = [verdict for verdict in verdicts if verdict.severity == severity]
            passed = all(verdict.passed for verdict in chosen)
            level = dg.AssetCheckSeverity.ERROR if severity == "block" else dg.AssetCheckSeverity.WARN
            reason = "; ".join(sentence(verdict) for verdict in chosen if not verdict.passed) or "all limits hold"
            metadata = {"limits": _table(chosen)} if chosen else {}
            if single:
                yield dg.AssetCheckResult(
                    passed=passed,
                    check_name=name,
                    asset_key=self.key,
                    severity=level,
                    description=reason,
                    metadata=metadata,
                )
            else:
                self.context.log_event(
                    dg.AssetCheckEvaluation(
                        asset_key=self.key,
                        check_name=name,
                        passed=passed,
                        severity=level,
                        description=reason,
                        partition=_partition(node),
                        blocking=severity == "block",
                        target_materialization_data=target,
                        metadata={label: dg.MetadataValue.table(value.records) for label, value in metadata.items()},
                    )
                )

    def _latest_materialization(self, node: "Node") -> AssetCheckEvaluationTargetMaterializationData | None:
        """What a logged check speaks of; automation takes a check that names no materialisation for an old one."""
        key = _partition(node)
        wanted = dg.AssetRecordsFilter(self.key, asset_partitions=[key] if key else None)
        records = self.context.instance.fetch_materializations(wanted, limit=1).records
        if not records:
            return None
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=records[0].storage_id, run_id=records[0].run_id, timestamp=records[0].timestamp
        )


def _partition(node: "Node") -> str | None:
    _, _, path = node.name.partition("/")
    return partitions.partition_key(path) if path else None


def _dimensions(key: str | None) -> dict[str, str]:
    if not isinstance(key, dg.MultiPartitionKey):
        return {}
    return {f"dagster/partition/{name}": value for name, value in key.keys_by_dimension.items()}


def sentence(verdict: Verdict) -> str:
    """A failed verdict in words: what is wrong, by how much, where, and the limit."""
    place = f" at {verdict.where}" if verdict.where else ""
    value = _text(verdict.value)
    return f"{verdict.check}: {verdict.column} is {value}{place}, limit {verdict.limit}"


def _table(verdicts: Sequence[Verdict]) -> dg.TableMetadataValue:
    records = [
        dg.TableRecord(
            {
                "check": verdict.check,
                "value": _text(verdict.value),
                "limit": verdict.limit,
                "verdict": "pass" if verdict.passed else f"fail {verdict.where}".strip(),
            }
        )
        for verdict in verdicts
    ]
    return dg.MetadataValue.table(records)


def _text(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return value or "none" if isinstance(value, str) else f"{value:.6g}"
