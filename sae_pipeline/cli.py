"""`sae-pipeline …`: run a study, plan it, ask why something is stale, open the UI."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resources.workspace import StudyGraph, Workspace

CHECKOUT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed with a message that says what to change."""
    options = _parser().parse_args(arguments)
    _set_environment(options)
    from sae_pipeline.store import PipelineError

    try:
        return int(options.run(options))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sae-pipeline", description="Train and judge sparse autoencoders.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *, study: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if study:
            command.add_argument(
                "study", nargs="?", default=None, help="a name in studies/ or a YAML file; default demo"
            )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of the study"
        )
        command.add_argument("--outputs", default=None, metavar="DIR", help="where results go; default outputs/")
        return command

    add("run", run, "Make everything a study asks for; what is unchanged is skipped.")
    add("plan", plan, "Say what a study would make and cost; makes nothing.")
    why_command = add("why", why, "Say why something would be made again.", study=False)
    why_command.add_argument("key", help="e.g. tokens, dataset/code.2.resid_post, or an autoencoder's key")
    why_command.add_argument("--study", default=None, help="a name in studies/ or a YAML file; default demo")
    ui_command = add("ui", ui, "Open the Dagster UI on this machine.")
    ui_command.add_argument("--port", default="3000", help="port on loopback")
    return parser


def _set_environment(options: argparse.Namespace) -> None:
    """Every process of a run, and the UI's, reads the study from the environment (see `StudyGraph.load`)."""
    if options.study is not None:
        os.environ["SAE_STUDY"] = options.study
    if options.set:
        os.environ["SAE_SET"] = "\n".join([*os.environ.get("SAE_SET", "").splitlines(), *options.set])
    if options.outputs is not None:
        os.environ["SAE_OUTPUTS"] = str(Path(options.outputs).resolve())
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(CHECKOUT / ".dagster_home")))
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(CHECKOUT / "dagster.yaml", home / "dagster.yaml")


def _graph() -> StudyGraph:
    from resources.workspace import StudyGraph

    return StudyGraph.load()


def _workspace() -> Workspace:
    return _graph().workspace


def run(options: argparse.Namespace) -> int:
    """Run the study's jobs one after another in this process, then print the table."""
    from assets.launching import prepare_instance, run_study
    from sae_pipeline.definitions import build_definitions

    graph = _graph()
    failure = run_study(build_definitions(graph), graph, prepare_instance(graph))
    if failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    _show(graph)
    return 0


def _show(graph: StudyGraph) -> None:
    from sae_pipeline.report import summary_table

    study_dir = graph.outputs_dir / graph.study.study
    print(summary_table(study_dir / "summary.json"))
    print(f"\nReport   {study_dir / 'report' / 'index.html'}")
    print(f"Tables   {study_dir / 'evaluation'}")
    named = "" if graph.study.study == "demo" else f"SAE_STUDY={graph.study.study} "
    print(f"UI       {named}make ui")


def plan(options: argparse.Namespace) -> int:
    """Print the plan of a study."""
    from sae_pipeline.planning.facts import gather_or_declare
    from sae_pipeline.planning.plan import make_plan, render_plan
    from sae_pipeline.planning.support import unsupported

    workspace = _workspace()
    facts, declared = gather_or_declare(workspace.study, workspace.root)
    print(render_plan(make_plan(workspace.study, facts), declared=declared))
    for setting in unsupported(workspace.study):
        print(f"not in this version: {setting}")
    return 0


def why(options: argparse.Namespace) -> int:
    """Print, for every node that matches the key, whether it is current, and if not, which fields changed."""
    from sae_pipeline.planning.lineage import matching_nodes
    from sae_pipeline.planning.staleness import explain

    workspace = _workspace()
    for node in matching_nodes(workspace.lineage, options.key):
        status = explain(node, workspace.outputs, workspace.pointers)
        print(f"{node.name}: {'current' if status.current else 'stale'}  ({node.identity[:12]})")
        for reason in status.reasons:
            print(f"  {reason}")
    return 0


def ui(options: argparse.Namespace) -> int:
    """Replace this process by `dagster dev` on loopback, with the study's partitions in place."""
    from assets.launching import prepare_instance

    prepare_instance(_graph())
    command = ["dagster", "dev", "-h", "127.0.0.1", "-p", options.port, "-w", str(CHECKOUT / "workspace.yaml")]
    print(f"http://127.0.0.1:{options.port}  (Ctrl-C ends it)", file=sys.stderr)
    os.execv(Path(sys.executable).parent / "dagster", command)
