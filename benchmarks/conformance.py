"""The same questions to other packages: do their losses and gradients agree with the papers', on the same weights?

Run `python benchmarks/conformance.py [NAME …]`: all packages, or those named. Each is installed at its pinned version
into an environment of its own in a temporary folder, which sees the PyTorch that is installed here; it answers
benchmarks/conformance/measure.py, and the environment is removed. One that cannot be installed, as without a network,
keeps its last result. Writes results/conformance.json and the table in docs/conformance.md. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "benchmarks" / "conformance"
RESULT = CHECKOUT / "benchmarks" / "results" / "conformance.json"
PAGE = CHECKOUT / "docs" / "conformance.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
OURS = "sae-pipeline"


@dataclass(frozen=True)
class Peer:
    """A package: its version, its adapter in conformance/, what must be held back for it, what it can do without.

    `without` names what it asks for but no check reaches: torchvision only loads beside the PyTorch build it was made
    for.
    """

    version: str
    adapter: str
    held: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


PEERS = {
    "sae-lens": Peer("6.54.12", "peer_sae_lens"),
    "dictionary-learning": Peer("0.1.0", "peer_dictionary_learning", without=("torchvision",)),
    "eai-sparsify": Peer("1.3.3", "peer_sparsify"),
    "overcomplete": Peer("0.3.0", "peer_overcomplete", held=("matplotlib<3.11",), without=("torchvision",)),
    "llamascopium": Peer("2.0.0b34", "peer_llamascopium", held=("transformer-lens<4",)),
}


def install(name: str, peer: Peer, folder: Path) -> Path:
    """The interpreter of a new environment that has the package; CalledProcessError if it cannot be installed."""
    venv.create(folder, with_pip=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    (packages / "installed_here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join((f"torch=={version('torch').partition('+')[0]}", *peer.held)))
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "-c", str(constraints), *peer.held, f"{name}=={peer.version}"], check=True)
    if peer.without:
        subprocess.run([*pip, "uninstall", "--yes", *peer.without], check=True)
    return python


def ask(python: Path, adapter: str) -> dict[str, Any]:
    """The answers of one package."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), "-W", "ignore", str(FOLDER / "measure.py"), adapter]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout)


def ask_peer(name: str, peer: Peer) -> dict[str, Any] | None:
    """Version and cells of a package; None, and a word on it, where it could not be installed or asked."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(install(name, peer, Path(folder)), peer.adapter)
    except subprocess.CalledProcessError as error:
        print(
            f"{name} {peer.version}: {Path(error.cmd[0]).name} ended with status {error.returncode}; last result kept"
        )
        return None
    return {"version": peer.version, "cells": answers["cells"]}


def measure(names: Sequence[str], last: dict[str, Any]) -> dict[str, Any]:
    """The result with the packages named asked anew, and ours always."""
    own = ask(Path(sys.executable), "ours")
    kept = last.get("packages", {})
    packages = {OURS: {"version": version(OURS), "cells": own["cells"]}}
    for name, peer in PEERS.items():
        found = ask_peer(name, peer) if name in names else None
        if found or name in kept:
            packages[name] = found or kept[name]
    about = {"python": platform.python_version(), "torch": version("torch"), "tolerance": own["tolerance"]}
    return {**about, "checks": own["checks"], "packages": packages}


def rounded(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def shown(cell: dict[str, Any], number: int | None) -> str:
    """A cell of the table."""
    mark = f" <sup>{number}</sup>" if number else ""
    if cell["verdict"] == "agrees":
        return rounded(cell["difference"]) + mark
    if cell["verdict"] == "differs":
        return f"**differs: {cell['difference']:.2g}**{mark}"
    return ("—" if cell["verdict"] == "not there" else cell["verdict"]) + mark


def notes(result: dict[str, Any]) -> dict[tuple[str, str], tuple[int, list[float]]]:
    """By package and text: its number, and how well it is proved in the cells that differ."""
    found: dict[tuple[str, str], tuple[int, list[float]]] = {}
    for name, package in result["packages"].items():
        for check in result["checks"]:
            cell = package["cells"][check["key"]]
            if cell["note"]:
                _, proofs = found.setdefault((name, cell["note"]), (len(found) + 1, []))
                proofs += [cell["explained"]] if cell["verdict"] == "differs" else []
    return found


def render(result: dict[str, Any]) -> str:
    """The table and its notes, in Markdown."""
    packages, numbered = result["packages"], notes(result)
    lines = ["| | " + " | ".join(f"{name} {each['version']}" for name, each in packages.items()) + " |"]
    lines.append("|---" * (len(packages) + 1) + "|")
    for check in result["checks"]:
        cells = {name: each["cells"][check["key"]] for name, each in packages.items()}
        row = [shown(cell, numbered.get((name, cell["note"]), (None,))[0]) for name, cell in cells.items()]
        lines.append(f"| {check['title']} ({check['source']}) | " + " | ".join(row) + " |")
    lines.append("")
    for (name, text), (number, proofs) in numbered.items():
        proof = f" Reference so changed: {rounded(max(proofs))}." if proofs else ""
        lines.append(f"{number}. {name}: {text}{proof}")
    made = f"Python {result['python']}, PyTorch {result['torch']}."
    return "\n".join(
        [*lines, "", f"{made} Agreement is a largest relative difference of at most {result['tolerance']}."]
    )


def page(text: str, result: dict[str, Any]) -> str:
    """The page with the table that belongs to a result."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{render(result)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all by default")
    names = parser.parse_args().names or list(PEERS)
    if unknown := set(names) - set(PEERS):
        parser.error(f"{', '.join(sorted(unknown))}: no such package; there are {', '.join(PEERS)}")
    last = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result = measure(names, last)
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(render(result))


if __name__ == "__main__":
    main()
