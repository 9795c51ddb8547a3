"""Audit, then publish: how every stage becomes a gated Dagster asset.

A plain blocking check does not stop a backfill or a later run, because the asset is materialised before the check
is read. So a stage writes a draft, validates statistics of it, records the check, and publishes only what passed;
a failing key raises at the end, after the good ones were published.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from assets import partitions
from assets.events import Events, sentence
from resources import Rule, StudyGraph, SubjectResource, ValidatorResource, Verdict, Workspace
from sae_pipeline.store import Artefact, Console, Draft, PipelineError, Progress, reuse_freed_memory, write_json_atomic

if TYPE_CHECKING:
    import pandas as pd

    from sae_pipeline.planning.lineage import Node
    from sae_pipeline.subjects import Subject

# Dagster stamps every key of a range run alike when an output is yielded. With this entry in the output's metadata
# it logs nothing itself, so that our own event per key, each with its data version, is the only one
# (see docs/orchestration.md).
_LOG_NO_EVENT = {"__source_asset_observation__": True}

# A failed gate publishes nothing, so eager() alone would not see new inputs; the second half also holds back what was
# published before a later check of the same partition failed.
_FOLLOW = dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What a stage works with: the workspace, the drafts to fill by node, and where progress goes.

    A stage that can lose single nodes notes each in `failures` with its reason and leaves it out of its summaries.
    """

    workspace: Workspace
    drafts: Mapping["Node", Draft]
    progress: Progress
    subject: Callable[[], "Subject"]
    failures: dict["Node", str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One gated asset.

    Attributes:
        asset: name; also the first part of its nodes' names.
        group: one of the six words.
        description: what a person reads in the UI.
        deps: assets it is made from.
        by: what it is partitioned by.
        make: fills the drafts and returns a summary per node.
        audit: statistics frame of a draft.
        rules: the gate of the study.
        show: metadata of a published artefact: numbers, small tables, at most two plots.
        place: copies what people read into the study's folder, once published.
        index: column that names a row of the frame in messages.
        pool: concurrency pool, `gpu` where the subject or the trainer runs.
        follows: made by itself once its inputs are, where automation is on. Not what costs hours: harvest, training.
    """

    asset: str
    group: str
    description: str
    deps: tuple[str, ...]
    by: Literal["study", "site", "autoencoder"]
    make: Callable[[Job], Mapping["Node", dict[str, Any]]]
    audit: Callable[[Job, "Node", Draft], "pd.DataFrame"]
    rules: Callable[[Workspace], Sequence[Rule]]
    show: Callable[[Workspace, Artefact], Metadata]
    place: Callable[[Workspace, Artefact], None] | None = None
    index: str | None = None
    pool: str | None = None
    kinds: frozenset[str] = field(default_factory=frozenset)
    follows: bool = False


def build_assets(stages: Sequence[Stage], graph: StudyGraph) -> list[dg.AssetsDefinition]:
    """Turn stages, inputs first, into the gated assets of a study."""
    by_name = {stage.asset: stage for stage in stages}
    return [_build(stage, by_name, graph) for stage in stages]


def _build(stage: Stage, stages: Mapping[str, Stage], graph: StudyGraph) -> dg.AssetsDefinition:
    """Turn a stage into an asset of the study, with an integrity check (blocks) and a signature check (warns)."""
    key = asset_key(graph, stage.asset)
    definition = _partitions(stage, graph)
    checks = [
        dg.AssetCheckSpec(name, asset=key, blocking=blocking, partitions_def=definition, description=description)
        for name, blocking, description in (
            ("integrity", True, "Damage, non-finite values, wrong shapes, broken promises: blocks publication."),
            ("signatures", False, "Odd but possible science: shown, never blocks."),
        )
    ]
    spec = dg.AssetSpec(
        key,
        deps=[_dep(graph, stage, stages[dep]) for dep in stage.deps],
        description=stage.description,
        group_name=stage.group,
        kinds=set(stage.kinds),
        automation_condition=_FOLLOW if stage.follows else None,
        skippable=True,
    )

    @dg.multi_asset(
        name=f"{stage.asset}",
        specs=[spec],
        check_specs=checks,
        partitions_def=definition,
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run() if definition else None,
        pool=stage.pool,
    )
    def body(
        context: dg.AssetExecutionContext,
        study: dg.ResourceParam[StudyGraph],
        subject: SubjectResource,
        validator: ValidatorResource,
    ) -> Iterator[Any]:
        reuse_freed_memory()
        run = _Run(context, stage, key, study.workspace, subject, validator)
        yield from run.execute(_requested(context, stage))

    return body


def asset_key(graph: StudyGraph, asset: str) -> dg.AssetKey:
    """Asset keys are prefixed by the study, so that several studies can share one Dagster instance."""
    return dg.AssetKey([_identifier(graph.study.study), asset])


def _identifier(name: str) -> str:
    return name.replace("-", "_").replace(".", "_")


def _partitions(stage: Stage, graph: StudyGraph) -> dg.PartitionsDefinition | None:  # type: ignore[type-arg]
    if stage.by == "study":
        return None
    return partitions.site_partitions(graph) if stage.by == "site" else partitions.member_partitions(graph)


def _dep(graph: StudyGraph, stage: Stage, upstream: Stage) -> dg.AssetDep:
    mapping: dg.PartitionMapping | None = None
    if {stage.by, upstream.by} == {"site", "autoencoder"}:
        mapping = dg.MultiToSingleDimensionPartitionMapping("site")
    elif stage.by == "study" and upstream.by != "study":
        mapping = dg.AllPartitionMapping()
    return dg.AssetDep(asset_key(graph, upstream.asset), partition_mapping=mapping)


def _requested(context: dg.AssetExecutionContext, stage: Stage) -> list[str]:
    if stage.by == "study":
        return [stage.asset]
    return [f"{stage.asset}/{partitions.node_path(key)}" for key in context.partition_keys]


class _Run:
    """One execution of one stage over the keys of a run."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        stage: Stage,
        key: dg.AssetKey,
        workspace: Workspace,
        subject: SubjectResource,
        validator: ValidatorResource,
    ) -> None:
        self.context, self.stage, self.key = context, stage, key
        self.events = Events(context, key)
        self.workspace, self.subject, self.validator = workspace, subject, validator
        self.failures: dict[str, str] = {}

    def execute(self, names: Sequence[str]) -> Iterator[Any]:
        nodes = [self.workspace.lineage.nodes[name] for name in names if name in self.workspace.lineage.nodes]
        skipped = [name for name in names if name not in self.workspace.lineage.nodes]
        if skipped:
            self.context.log.info(f"not in the study's grids, skipped: {', '.join(skipped)}")
        # A backfill of one partition is a run over a range too, and a yielded check would lose its partition there.
        single = self.stage.by == "study" or not self.context.has_partition_key_range
        todo = []
        for node in nodes:
            with self.workspace.outputs.keeping():
                published = self.workspace.find(node.name)
                if published is None:
                    todo.append(node)
                else:
                    yield from self._announce(node, published, _read_verdicts(published), single, reused=True)
        for generation in self._generations(todo):
            yield from self._make(generation, single)
        if self.failures:
            lines = "\n".join(f"  {name}: {reason}" for name, reason in self.failures.items())
            raise dg.Failure(f"{self.stage.asset}: not published\n{lines}", allow_retries=False)
        yield dg.Output(None, output_name=self.key.to_python_identifier(), metadata=_LOG_NO_EVENT)

    def _generations(self, nodes: Sequence["Node"]) -> Iterator[list["Node"]]:
        """What can be made at once: what is made from others of the same asset comes when these are published."""
        waiting = list(nodes)
        while waiting:
            names = {node.name for node in waiting}
            ready = [node for node in waiting if not names & set(node.inputs)]
            waiting = [node for node in waiting if node not in ready]
            lacking = {node: parents for node in ready if (parents := self._unpublished(node))}
            for node, parents in lacking.items():
                self.failures[node.name] = f"it is made from {parents}, which is not published; make that first"
            if fed := [node for node in ready if node not in lacking]:
                yield fed

    def _unpublished(self, node: "Node") -> str:
        """Inputs of the same asset that are not published; empty if there are none."""
        same = [name for name in node.inputs if name.split("/")[0] == self.stage.asset]
        return ", ".join(name for name in same if self.workspace.find(name) is None)

    def _make(self, nodes: Sequence["Node"], single: bool) -> Iterator[Any]:
        drafts = {node: self._open(node) for node in nodes}
        job = Job(self.workspace, drafts, Console(self.stage.asset), lambda: self.subject.get(self.workspace))
        try:
            try:
                summaries = self.stage.make(job)
            except PipelineError as error:  # says itself what to change; a traceback would hide it
                raise dg.Failure(f"{self.stage.asset}: {error}", allow_retries=False) from error
            made = {node: draft for node, draft in drafts.items() if node in summaries}
            self.failures |= {node.name: reason for node, reason in job.failures.items()}
            verdicts = self._judge(job, made)
            for node, draft in made.items():
                yield from self._gate(node, draft, summaries[node], verdicts[node.name], single)
        finally:
            for draft in drafts.values():
                draft.close()

    def _open(self, node: "Node") -> Draft:
        with self.workspace.outputs.keeping():
            return Draft.open(
                self.workspace.directory(node),
                stage=node.stage,
                key=node.key,
                identity=node.identity,
                lineage=dict(node.record),
            )

    def _judge(self, job: Job, drafts: Mapping["Node", Draft]) -> dict[str, list[Verdict]]:
        if not drafts:
            return {}
        frames = {node.name: self.stage.audit(job, node, draft) for node, draft in drafts.items()}
        return self.validator.validate(self.stage.asset, frames, self.stage.rules(self.workspace), self.stage.index)

    def _gate(
        self, node: "Node", draft: Draft, summary: dict[str, Any], verdicts: Sequence[Verdict], single: bool
    ) -> Iterator[Any]:
        self._record(node, verdicts)
        blocked = [verdict for verdict in verdicts if not verdict.passed and verdict.severity == "block"]
        if blocked:
            yield from self.events.checks(node, verdicts, single)
            self.failures[node.name] = "; ".join(sentence(verdict) for verdict in blocked)
            with self.workspace.outputs.keeping():
                draft.close()
                _set_aside(draft.path)
            return
        draft.write_json("gates.json", [verdict.as_dict() for verdict in verdicts])
        with self.workspace.outputs.keeping():
            yield from self._announce(node, draft.publish(summary), verdicts, single)

    def _announce(
        self, node: "Node", artefact: Artefact, verdicts: Sequence[Verdict], single: bool, *, reused: bool = False
    ) -> Iterator[Any]:
        """Place a published artefact, tell Dagster of it, and move the pointer last: a run that is killed before that
        finds the node stale the next time, and does all of this again."""
        if self.stage.place is not None:
            self.stage.place(self.workspace, artefact)
        self._record(node, verdicts)
        self.events.materialized(node, artefact, self.stage.show(self.workspace, artefact), reused=reused)
        # Only now: to Dagster a check speaks of the materialisation that is the latest when it is recorded.
        yield from self.events.checks(node, verdicts, single)
        self.workspace.pointers.set(node.name, artefact)

    def _record(self, node: "Node", verdicts: Sequence[Verdict]) -> None:
        """Keep the last verdicts of every node beside the study, failed ones too: the report shows them."""
        from sae_pipeline.planning.gates import GATES, gate_file

        path = self.workspace.study_dir / GATES / gate_file(node.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(
            path, {"node": node.name, "identity": node.identity, "verdicts": [item.as_dict() for item in verdicts]}
        )


def _read_verdicts(artefact: Artefact) -> list[Verdict]:
    return [Verdict(**entry) for entry in artefact.read_json("gates.json")]


def _set_aside(path: Path) -> None:
    """Move a rejected draft out of the way, so that the next run starts afresh; only the latest is kept."""
    aside = path.with_name(f"{path.name}.rejected")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
