"""Python and the installed packages against what the project asks for."""

from __future__ import annotations

import importlib.metadata
import platform
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sae_pipeline.doctor.check import INSTALL, Check

PROJECT = "sae-pipeline"
SISTERS = ("dagster", "dagster-graphql", "dagster-pipes", "dagster-shared", "dagster-webserver")
_MOST = 5  # differing versions that are named


def python_version(root: Path) -> Iterator[Check]:
    """Whether this interpreter is new enough; `root` is the checkout."""
    wanted, _ = _asked_for(root)
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Check("python", "ok", f"{found} ({wanted})")
    else:
        yield Check("python", "fail", f"{found}, needs {wanted}", "make a .venv with a newer Python")


def requirements(root: Path) -> Iterator[Check]:
    """Whether every package the project needs is there in a version it accepts."""
    _, needed = _asked_for(root)
    wrong = []
    for requirement in needed:
        found = _installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is not installed, needs {requirement}")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, needs {requirement.specifier}")
    for problem in wrong:
        yield Check("packages", "fail", problem, INSTALL)
    if not wrong:
        yield Check("packages", "ok", f"all {len(needed)} that the project asks for")


def constraints(root: Path) -> Iterator[Check]:
    """How the installed versions differ from those the project was tested with (`constraints.txt`)."""
    file = root / "constraints.txt"
    if not file.is_file():
        yield Check("constraints", "warn", f"{file} is not there, so versions cannot be compared with the tested ones")
        return
    tested = dict(line.split("==") for line in file.read_text().split() if "==" in line)
    differing = [
        f"{name} {found} ({version})"
        for name, version in tested.items()
        if (found := _installed(name)) is not None and Version(found).public != Version(version).public
    ]
    if not differing:
        yield Check("constraints", "ok", f"the versions of {file.name}")
        return
    more = f" and {len(differing) - _MOST} more" if len(differing) > _MOST else ""
    named = ", ".join(differing[:_MOST])
    yield Check("constraints", "warn", f"not as tested (in brackets): {named}{more}", INSTALL)


def dagster_release() -> Iterator[Check]:
    """Whether Dagster and its sister packages are of one release: they are made for each other and nothing else."""
    found = {name: version for name in SISTERS if (version := _installed(name)) is not None}
    if len(set(found.values())) == 1:
        yield Check("dagster", "ok", f"{found['dagster']}, with {len(found) - 1} sister packages of the same release")
    else:
        versions = ", ".join(f"{name} {version}" for name, version in found.items()) or "not installed"
        yield Check("dagster", "fail", f"mixed releases: {versions}", INSTALL)


def _asked_for(root: Path) -> tuple[str, list[Requirement]]:
    """Python and packages as `pyproject.toml` of a checkout says, or as the installed package does."""
    file = root / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], [Requirement(line) for line in project["dependencies"]]
    metadata = importlib.metadata.metadata(PROJECT)
    needed = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or ()]
    plain = [item for item in needed if item.marker is None or item.marker.evaluate({"extra": ""})]
    return metadata["Requires-Python"], plain


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
