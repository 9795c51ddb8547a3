"""What was found, as tables in Markdown, and how the goals fared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from store import spread
from ways import AUXK_WAYS, COMPILED, PEER_WAYS, PRODUCTS, QUALITY_FORM, STOCK, Form


def ratios(result: dict[str, Any], name: str, to: str, rate: str = "tokens_per_s") -> dict[str, float]:
    """Of two ways' rates, each pair of one round: median, least and most."""
    ways = result["ways"]
    return spread([ours / its for ours, its in zip(ways[name][rate], ways[to][rate], strict=True)])


def best_peer(result: dict[str, Any], rate: str = "tokens_per_s") -> str | None:
    peers = [name for name in PEER_WAYS if name in result["ways"]]
    return max(peers, key=lambda name: statistics.median(result["ways"][name][rate]), default=None)


def shown(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f}–{found['most']:.2f})"


def goals(result: dict[str, Any]) -> list[str]:
    """How the goals fared; they are meant for two threads and a quiet machine."""
    ways, lines = result["ways"], []

    def judge(what: str, value: float, least: float | None = None, most: float | None = None) -> None:
        met = value >= least if least else most is not None and value <= most
        goal = f"at least {least}" if least else f"at most {most}"
        lines.append(f"- {what}: {value:.2f}, goal {goal}: {'met' if met else 'missed'}")

    own, best, product = COMPILED if COMPILED in ways else STOCK, best_peer(result), "bf16 product"
    if best:
        for name, least in ((STOCK, 4.0), (COMPILED, 6.0)):
            if name in ways:
                judge(f"{name} to {best}", ratios(result, name, best)["median"], least=least)
        leanest = min((name for name in PEER_WAYS if name in ways), key=lambda name: ways[name]["over_base_mb"])
        share = ways[own]["over_base_mb"] / ways[leanest]["over_base_mb"]
        judge(f"memory of {own} to {leanest}, the leanest", share, most=0.6)
    judge(f"{own} to the {product}", ratios(result, own, product)["median"], least=0.22 if result["d"] == 256 else 0.45)
    if AUXK_WAYS.keys() <= ways.keys():
        none, dead = AUXK_WAYS
        judge("time of a step with 1 % dead to one with none", ratios(result, own, dead)["median"], most=1.1)
        judge("time of a step with AuxK and none dead to one without", ratios(result, none, own)["median"], most=1.02)
    return lines


def render_speed(result: dict[str, Any]) -> str:
    """The table of one form, and how the goals fared."""
    form = Form(*(result[name] for name in ("d", "n", "k", "batch")))
    against = [best_peer(result), *(name for name in PRODUCTS if name in result["ways"])]
    by_cpu = best_peer(result, "tokens_per_cpu_s")
    columns = ["", "tokens/s", *(f"to {name}" for name in against if name), "tokens/CPU s"]
    columns += [*([f"to {by_cpu}, CPU"] if by_cpu else []), "MB over base"]
    lines = [f"### {form}, {result['threads']} thread(s)", "", "| " + " | ".join(columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    for name, way in result["ways"].items():
        cells = [name, f"{statistics.median(way['tokens_per_s']):,.0f}"]
        cells += [shown(ratios(result, name, to)) for to in against if to]
        cells.append(f"{statistics.median(way['tokens_per_cpu_s']):,.0f}")
        cells += [shown(ratios(result, name, by_cpu, "tokens_per_cpu_s"))] if by_cpu else []
        lines.append("| " + " | ".join([*cells, f"{way['over_base_mb']:,.0f}"]) + " |")
    return "\n".join([*lines, "", *goals(result)])


def render_quality(results: list[dict[str, Any]]) -> str:
    """The table of all seeds."""
    lines = [f"### Time to quality, {QUALITY_FORM}", ""]
    columns = ["", "NMSE before", "NMSE at the end", "tokens to the target", "seconds", "CPU seconds", "to best peer"]
    for result in results:
        target = f"target {result['target_nmse']:.4f}, where {result['best_peer']} ends"
        lines += [f"Seed {result['seed']}, {result['threads']} thread(s), {target}.", ""]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for name, trail in result["trails"].items():
            cells = [name, f"{trail[0]['nmse']:.4f}", f"{trail[-1]['nmse']:.4f}"]
            cells += ["not reached", "", "", ""] if not (at := result["reached"][name]) else arrival(at, result)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def arrival(at: Mapping[str, float], result: Mapping[str, Any]) -> list[str]:
    share = at["wall_s"] / result["reached"][result["best_peer"]]["wall_s"]
    return [f"{at['tokens']:,.0f}", f"{at['wall_s']:.1f}", f"{at['cpu_s']:.1f}", f"{share:.2f}"]
