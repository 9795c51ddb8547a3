"""The status of a study as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sae_pipeline.planning.status import STATES, Attempt, Champion, LastRun, NodeState, StudyStatus, totals
from sae_pipeline.store.disk import human_bytes
from sae_pipeline.store.progress import clock_text, human

_MOST = 12  # lines of one kind; the rest is counted, and --json has all


def render_status(status: StudyStatus) -> str:
    """One line per asset, then whatever needs a look: at work, stopped, rejected, warnings, champions, the last run."""
    attempts = [(node, node.attempt) for node in status.nodes if node.attempt is not None]
    working = [_attempt(node, attempt) for node, attempt in attempts if attempt.pid is not None]
    stopped = [_attempt(node, attempt) for node, attempt in attempts if attempt.pid is None]
    rejected = [f"{node.name}  {node.reason}" for node in status.nodes if node.state == "rejected"]
    warnings = [f"{node.name}  {warning}" for node in status.nodes for warning in node.warnings]
    remade = [f"{node.name}  {node.remade} shards" for node in status.nodes if node.remade]
    lines = [
        f"Study {status.study} in {status.folder}",
        *([f"null control: {status.null} (docs/nulls.md)"] if status.null else []),
        *_table(status.assets()),
        *_section("in progress", working),
        *_section("stopped; the next run goes on from there", stopped),
        *_section("rejected at the gate", rejected),
        *_section("warnings", warnings),
        *_section("damaged once, and made again with other bits within tolerance", remade),
        *_champions(status.champions),
    ]
    if any(node.state == "stale" for node in status.nodes):
        lines.append("what changed: sae-pipeline why KEY")
    return "\n".join([*lines, _last_run(status.last_run)])


def _table(assets: dict[str, list[NodeState]]) -> Iterator[str]:
    heads = ("nodes", *STATES, "warnings")
    widths = [max(7, len(head) + 2) for head in heads]
    titles = (f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    yield "".join([f"{'':22}", *titles, f"{'size':>11}"])
    everything = [node for nodes in assets.values() for node in nodes]
    for asset, nodes in [*assets.items(), ("all", everything)]:
        counts = totals(nodes)
        numbers = [counts[head.replace(" ", "_")] for head in heads]
        cells = [f"{number or '·':>{width}}" for number, width in zip(numbers, widths, strict=True)]
        yield "".join([f"{asset:22}", *cells, f"{human_bytes(counts['n_bytes']):>11}"])


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_MOST])
        if len(lines) > _MOST:
            yield f"  … and {len(lines) - _MOST} more"


def _attempt(node: NodeState, attempt: Attempt) -> str:
    parts = [node.name]
    if attempt.pid is not None:
        parts.append(f"process {attempt.pid}")
    if attempt.step is not None and attempt.tokens is not None and attempt.of_tokens is not None:
        parts.append(f"checkpoint at step {attempt.step:,} of {attempt.steps:,}")
        parts.append(f"{human(attempt.tokens)} of {human(attempt.of_tokens)} tokens")
    if attempt.shards:
        parts.append(f"{attempt.shards:,} shards")
    return "  ".join(parts)


def _champions(champions: tuple[Champion, ...]) -> Iterator[str]:
    crowned = [champion for champion in champions if champion.best is not None]
    other = [champion for champion in crowned if champion.best != champion.latest]
    if crowned:
        yield f"best version of {len(crowned)} of {len(champions)} autoencoders known; " + (
            "each is the latest" if not other else f"{len(crowned) - len(other)} are the latest"
        )
    yield from _section(
        "best is not latest",
        [
            f"{champion.place}  best {champion.best}, latest {champion.latest or 'none'}: {champion.verdict}"
            for champion in other
        ],
    )


def _last_run(run: LastRun | None) -> str:
    if run is None:
        return "last run: none known to this Dagster home"
    times = ""
    if run.started_s is not None:
        began = datetime.fromtimestamp(run.started_s).strftime("%Y-%m-%d %H:%M:%S")
        took = f", {clock_text(run.ended_s - run.started_s)}" if run.ended_s is not None else ""
        times = f", began {began}{took}"
    failure = "".join(f"\n  {line}" for line in (run.failure or "").splitlines()[:_MOST])
    return f"last run: {run.job} {run.outcome.lower()}{times} ({run.run_id[:8]}){failure}"
