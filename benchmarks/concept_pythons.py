"""Whether other Pythons find the same concepts: the oracle snippets and files of the standard library, on each of them.

Run `python benchmarks/concept_pythons.py python3.12 python3.13`: other interpreters, by name or path, that need nothing
installed. Writes results/concept_pythons.json. Without any, nothing is done.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sae_pipeline.tokens import stdlib_documents

CHECKOUT = Path(__file__).parents[1]
SPANS = Path("sae_pipeline/embedded/concepts/spans")
FILES, SEED = 200, 0

CHECK = """
import hashlib, json, platform, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from concept_snippets import SNIPPETS, unmarked
from sae_pipeline.embedded.concepts.spans import UnparsableSource, concept_spans

def agrees(concept, snippet):
    text, expected = unmarked(snippet)
    return concept_spans(text)[concept] == expected

def digest(text):
    try:
        return hashlib.sha256(repr(concept_spans(text)).encode()).hexdigest()
    except UnparsableSource as error:
        return str(error)

texts = json.loads((Path(sys.path[0]) / "texts.json").read_text())
disagreeing = [[c, s] for c, snippets in SNIPPETS.items() for s in snippets if not agrees(c, s)]
print(json.dumps({
    "python": platform.python_version(),
    "snippets": sum(map(len, SNIPPETS.values())),
    "disagreeing": disagreeing,
    "digests": {name: digest(text) for name, text in texts.items()},
}))
"""


def prepare(folder: Path) -> None:
    """Fill a folder with the concepts' code, which needs the standard library only, the oracle and the texts."""
    shutil.copytree(CHECKOUT / SPANS, folder / SPANS, ignore=shutil.ignore_patterns("__pycache__"))
    for package in list(SPANS.parents)[:-1]:
        (folder / package / "__init__.py").touch()
    shutil.copy(CHECKOUT / "tests" / "embedded" / "concept_snippets.py", folder)
    documents = random.Random(SEED).sample(list(stdlib_documents()), FILES)
    (folder / "texts.json").write_text(json.dumps({document.id: document.text for document in documents}))


def answers(given: Path, python: str) -> dict[str, Any]:
    """What an interpreter finds, in a process that has nothing but its standard library."""
    done = subprocess.run([python, "-I", "-c", CHECK, str(given)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def row(answer: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Counts of agreement with the oracle and with the reference's spans."""
    other = [name for name, digest in answer["digests"].items() if digest != reference["digests"][name]]
    return {
        "python": answer["python"],
        "snippets": answer["snippets"],
        "snippets_as_marked": answer["snippets"] - len(answer["disagreeing"]),
        "files": len(answer["digests"]),
        "files_with_the_same_spans": len(answer["digests"]) - len(other),
        "files_with_other_spans": other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help="other interpreters")
    pythons = parser.parse_args().pythons
    if not pythons:
        print("concept_pythons: name other interpreters; nothing done")
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        reference = answers(Path(name), sys.executable)
        rows = [row(answer, reference) for answer in (reference, *(answers(Path(name), p) for p in pythons))]
    path = CHECKOUT / "benchmarks" / "results" / "concept_pythons.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()
