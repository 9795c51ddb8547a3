"""One of several workers that make the activations of a study: `python -m sae_pipeline.harvest_worker STUDY`.

Start as many as there are devices, on machines that share the output folder, each with a range of shards (ranges may
overlap; without one a worker helps with all). The tokens must be published. When they are done, `sae-pipeline run`
checks and publishes what they made, and makes what is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resources.workspace import Workspace
    from sae_pipeline.planning.lineage import Node


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a range of shards; 0 when all of it is committed."""
    from resources.workspace import StudyGraph, outputs_dir, study_file
    from sae_pipeline.store import PipelineError

    options = _parser().parse_args(arguments)
    where = Path(options.outputs) if options.outputs else outputs_dir()
    try:
        work = StudyGraph.read(study_file(options.study), options.set, where).workspace
        nodes = [node for node in work.lineage.of_asset("activations") if work.find(node.name) is None]
        if not nodes:
            print("activations are published already: nothing to do")
            return 0
        made = _harvest(work, nodes, options.shards)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{made} shards made here; the range is committed. Publish with: sae-pipeline run {options.study}")
    return 0


def _harvest(work: Workspace, nodes: Sequence[Node], shards: range | None) -> int:
    from sae_pipeline.activations import Place, harvest_range, pinned_shards
    from sae_pipeline.planning.earlier import earlier_activations
    from sae_pipeline.store import Console, PipelineError
    from sae_pipeline.study import Site
    from sae_pipeline.subjects import load_subject
    from sae_pipeline.tokens import Tokens

    tokens = Tokens.open(work.artefact("tokens"))
    kept = pinned_shards(work.study.activations, tokens)
    if shards is not None and shards.stop > len(kept):
        raise PipelineError(f"--shards {shards.start}:{shards.stop}: there are {len(kept)} to be made, 0:{len(kept)}")
    by_site = {Site.parse(node.name.partition("/")[2]): node for node in nodes}
    places = {
        site: Place(work.directory(node), node.stage, node.key, node.identity, dict(node.record))
        for site, node in by_site.items()
    }
    return harvest_range(
        load_subject(work.study.subject, root=work.root),
        tokens,
        places,
        work.study.activations,
        shards=kept if shards is None else shards,
        earlier={
            site: earlier_activations(work.lineage, node, work.outputs, work.pointers) for site, node in by_site.items()
        },
        keeping=work.outputs.keeping,
        progress=Console("activations"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sae_pipeline.harvest_worker", description=__doc__)
    parser.add_argument("study", help="a name in studies/, or a path")
    parser.add_argument("--shards", type=_range, help="first and one past the last, e.g. 0:8; default all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the study")
    parser.add_argument("--outputs", help="output folder; default as for sae-pipeline")
    return parser


def _range(text: str) -> range:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of shards such as 0:8")
    return range(int(found[1]), int(found[2]))


if __name__ == "__main__":
    sys.exit(main())
