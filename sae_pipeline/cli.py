"""`sae-pipeline …`: run a study, plan it, ask how it stands and why something is stale, look into it, clear up."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_pipeline.comparing import compare, table
from sae_pipeline.inspecting import inspect
from sae_pipeline.keeping import repair, verify
from sae_pipeline.upkeep import STALE, doctor, gc, status

if TYPE_CHECKING:
    from resources.workspace import StudyGraph, Workspace

CHECKOUT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed with a message that says what to change, 3 not current."""
    options = _parser().parse_args(arguments)
    if options.run is doctor:  # it works where packages are missing that everything else needs
        _set_environment(options)
        return int(options.run(options))
    from sae_pipeline.store import PipelineError

    try:
        _set_environment(options)
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
        name: str, run: Callable[[argparse.Namespace], int], text: str, *, study: bool = True, home: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, study=None, home=home)
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
    inspect_command = add("inspect", inspect, "Say what an autoencoder sees in a prompt.", study=False, home=False)
    inspect_command.add_argument("key", help="an autoencoder's key, e.g. topk-n1024-k8")
    inspect_command.add_argument("--prompt", required=True, help="the text, e.g. 'def f(x):'")
    inspect_command.add_argument("--site", default=None, help="where it lies, if the study has several sites")
    inspect_command.add_argument("--top", type=int, default=5, help="latents listed for each token; default 5")
    inspect_command.add_argument("--study", default=None, help="a name in studies/ or a YAML file; default demo")
    table_command = add("table", table, "Print the figures of a study's autoencoders.", home=False)
    table_command.add_argument("--metric", default=None, help="one metric with its intervals, e.g. nmse, dce, silent")
    table_command.add_argument(
        "--beside", action="append", default=[], metavar="STUDY", help="a null control, by its name; may be repeated"
    )
    compare_command = add(
        "compare", compare, "Say how two autoencoders differ, and how surely.", study=False, home=False
    )
    compare_command.add_argument("a", help="an autoencoder's key, e.g. topk-n1024-k8")
    compare_command.add_argument("b", help="another's, at the same site")
    compare_command.add_argument("--site", default=None, help="where, if the study has several sites")
    compare_command.add_argument("--study", default=None, help="a name in studies/ or a YAML file; default demo")
    ui_command = add("ui", ui, "Open the Dagster UI on this machine.")
    ui_command.add_argument("--port", default="3000", help="port on loopback")
    status_command = add("status", status, f"How a study stands. Exit status: 0 all current, {STALE} not.", home=False)
    status_command.add_argument("--json", action="store_true", help="the same as JSON")
    doctor_command = add(
        "doctor", doctor, "Is this machine fit for it? Exit status: 0 yes, 1 no.", study=False, home=False
    )
    doctor_command.add_argument("studies", nargs="*", help="studies whose needs are looked at too")
    _add_verify(add("verify", verify, "Read again all that was published, and name damage.", study=False, home=False))
    _add_repair(add("repair", repair, "Verify a study, and mend damaged shards of activations.", home=False))
    _add_gc(add("gc", gc, "List what no study refers to, and delete it if told to.", study=False, home=False))
    _add_backfill(
        add("backfill", backfill, "Make one asset over all its partitions, or over those missing.", study=False)
    )
    return parser


def _add_backfill(command: argparse.ArgumentParser) -> None:
    command.add_argument("asset", help="e.g. eval_downstream, codes, autoencoder")
    command.add_argument("--missing", action="store_true", help="only what is missing or stale")
    command.add_argument("--key", action="append", default=[], help="only this autoencoder or site; may be repeated")
    command.add_argument("--study", default=None, help="a name in studies/ or a YAML file; default demo")


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Read again all that was published, every byte and checksum, and name each damaged file. Changes nothing and "
        "holds nobody up. Exit status: 0 all is whole, 1 something is damaged."
    )
    command.add_argument(
        "study", nargs="?", default=None, help="only what this study uses, and what that was made from; default all"
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")


def _add_repair(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Verify what a study uses, and make its damaged shards of activations again: with the same bits, or else "
        "within a tolerance and marked as remade. Exit status: 0 nothing damaged is left, 1 something is."
    )
    command.add_argument(
        "--tolerance", type=float, default=None, help="largest relative difference; default what rounding explains"
    )
    command.add_argument(
        "--discard", action="store_true", help="move what cannot be mended to the trash; the next run makes it again"
    )


def _add_gc(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "studies", nargs="*", help="studies whose unfinished drafts are kept; those in studies/ are known anyway"
    )
    command.add_argument(
        "--older-than", default="1d", metavar="AGE", help="untouched for 90s, 30min, 12h, 7d; default 1d"
    )
    command.add_argument("--drafts", action="store_true", help="unfinished drafts too, though a study asks for them")
    command.add_argument("--delete", action="store_true", help="delete what is listed; without it nothing is changed")


def _set_environment(options: argparse.Namespace) -> None:
    """Every process of a run, and the UI's, reads the study from the environment (see `StudyGraph.load`)."""
    if options.study is not None:
        os.environ["SAE_STUDY"] = options.study
    if options.set:
        os.environ["SAE_SET"] = "\n".join([*os.environ.get("SAE_SET", "").splitlines(), *options.set])
    if options.outputs is not None:
        os.environ["SAE_OUTPUTS"] = str(Path(options.outputs).resolve())
    home = Path(os.environ.get("DAGSTER_HOME") or CHECKOUT / ".dagster_home").absolute()
    os.environ["DAGSTER_HOME"] = str(home)
    if options.home:
        _make_home(home)


def _make_home(home: Path) -> None:
    from sae_pipeline.store import PipelineError
    from sae_pipeline.store.atomic import replace

    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            replace(home / "dagster.yaml", (CHECKOUT / "dagster.yaml").read_bytes())
    except OSError as error:
        raise PipelineError(
            f"DAGSTER_HOME is {home}, which cannot be written ({error.strerror}); set it to another folder, or unset it"
        ) from None


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


def backfill(options: argparse.Namespace) -> int:
    """Materialise one asset over its partitions in this process; partitions that exist are recorded again."""
    from assets.launching import backfill, prepare_instance
    from sae_pipeline.definitions import build_definitions
    from sae_pipeline.planning.lineage import asset_nodes

    graph = _graph()
    nodes = asset_nodes(graph.workspace.lineage, options.asset, options.key)
    if options.missing:
        wanted = {node.name for node in graph.workspace.stale([options.asset])}
        nodes = [node for node in nodes if node.name in wanted]
    failures = backfill(build_definitions(graph), graph, prepare_instance(graph), nodes) if nodes else []
    print("\n".join(f"error: {failure}" for failure in failures), file=sys.stderr, end="\n" if failures else "")
    print(f"{options.asset}: {len(nodes)} partitions" + (f", {len(failures)} runs failed" if failures else ", done"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
