"""How long the trainer waits for data: the share of the wall time of its steps that goes by between two batches.

The trainer itself, on a published dataset with the shards of the demo (64 Ki rows in half precision, four of them mixed
in memory), trains past the ends of groups of shards. Timed is what it spends asking for the next batch, against all of
its time from the second batch on; the first, which waits for a whole group to be read, stands by itself. The goal is a
share below 0.03. Sizes are the demo's, all its autoencoders on one read, and one autoencoder of n = 16384 at d = 768,
on smaller shards to pass as many ends; the smallest autoencoder alone has the shortest step there is, and no goal.
Run `python benchmarks/activation_feed.py [--quick] [--folder DIR]`; writes results/activation_feed.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_pipeline.activations import ACTS, Moments
from sae_pipeline.activations.harvesting import to_numpy
from sae_pipeline.dataset import Batch, Dataset, build_dataset
from sae_pipeline.store import Artefact, Draft, reuse_freed_memory
from sae_pipeline.study import AutoencoderSpec, Site, expand, load_study
from sae_pipeline.training import Member, train

STUDIES = Path(__file__).parent.parent / "studies"
CONTEXT, DEMO_D, GOAL = 64, 256, 0.03


@dataclass(frozen=True)
class Case:
    """What is trained: rows of width d in shards of `shard_rows`, `specs` together, for `steps` steps."""

    name: str
    d: int
    shard_rows: int
    specs: tuple[AutoencoderSpec, ...]
    steps: int
    goal: float | None = GOAL

    @property
    def rows(self) -> int:
        """Rows trained on, in one pass over as many; at least three groups of four shards."""
        return max(self.steps * self.specs[0].batch, 12 * self.shard_rows)


def cases(quick: bool) -> list[Case]:
    """The demo's sweep, its smallest member alone, and one large autoencoder."""
    demo = load_study(STUDIES / "demo.yaml")
    (site,) = demo.sites
    sweep = tuple(expand(demo, Site("code", 2, "resid_post"), site, DEMO_D).values())
    large = AutoencoderSpec(
        key="topk-n16384-k32", recipe="topk", n=16384, k=32, batch=4096, tokens=1, lr=1e-4, auxk_k=384,
        auxk_alpha=1 / 32, dead_after_tokens=10**6,
    )  # fmt: skip
    return [
        Case("the demo's sweep", DEMO_D, 65_536, sweep, 300 if quick else 600),
        Case("its smallest alone", DEMO_D, 65_536, sweep[:1], 800 if quick else 1600, None),
        Case("d = 768, n = 16384", 768, 4096, (large,), 10 if quick else 20),
    ]


@dataclass
class Waits:
    """A dataset that notes when a batch was asked for and when it came."""

    dataset: Dataset
    first_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    stepped_s: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def batches(self, *given: Any, **options: Any) -> Generator[Batch, None, None]:
        """The dataset's, timed; the first wait is kept apart."""
        with closing(self.dataset.batches(*given, **options)) as batches:
            asked = time.perf_counter()
            for batch in batches:
                came = time.perf_counter()
                if self.first_s:
                    self.waited_s.append(came - asked)
                self.first_s = self.first_s or came - asked
                yield batch
                asked = time.perf_counter()
                self.stepped_s.append(asked - came)

    @property
    def share(self) -> float:
        """Waiting, of the wall time of all steps but the first, whose batch waits for the pipeline to fill."""
        return sum(self.waited_s) / (sum(self.waited_s) + sum(self.stepped_s[1:]))


def publish(folder: Path, case: Case) -> Dataset:
    """Rows of random directions and lengths, their moments, and a dataset over them."""
    generator = torch.Generator().manual_seed(0)
    shard_rd = torch.randn(case.shard_rows, case.d, generator=generator).half()
    info = {"moments": Moments.of(shard_rd).to_json()}
    with Draft.open(folder / "a", stage="activations", key="bench", identity="a" * 64, lineage={}) as draft:
        acts = draft.array(ACTS, shape=(case.rows, case.d), dtype="float16", shard_rows=case.shard_rows)
        for i in range(acts.n_shards):
            rows = acts.rows(i)
            acts.write_shard(i, to_numpy(shard_rd[: rows.stop - rows.start].roll(i, 1)), info)
        activations = draft.publish({})
    return _dataset(folder / "d", case, activations)


def _dataset(path: Path, case: Case, activations: Artefact) -> Dataset:
    offsets = np.append(np.arange(0, case.rows, CONTEXT), case.rows)
    contexts = {"row_offsets": offsets, "document_of_context": np.arange(len(offsets) - 1)}
    with Draft.open(path, stage="dataset", key="bench", identity="b" * 64, lineage={}) as draft:
        build_dataset(draft, activations, normaliser="paper", seed=0, sample_rows=4096, **contexts)
        return Dataset.open(draft.publish({}), activations)


def run(folder: Path, case: Case, dataset: Dataset) -> Waits:
    """Train the case's autoencoders for its steps."""
    waits, members = Waits(dataset), {}
    for spec in case.specs:
        shorter = {"tokens": case.steps * spec.batch, "warmup_steps": min(spec.warmup_steps, 5)}
        draft = Draft.open(folder / spec.key, stage="autoencoder", key=spec.key, identity="c" * 64, lineage={})
        members[spec.key] = Member(spec.model_copy(update=shorter), draft)
    train(members, waits)  # type: ignore[arg-type]
    for member in members.values():
        member.draft.close()
    return waits


def measure(folder: Path, case: Case, repetitions: int) -> dict[str, Any]:
    """Medians over repetitions, and the share of each."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        dataset = publish(Path(place), case)
        found = [run(Path(place) / str(i), case, dataset) for i in range(repetitions)]
    return {
        "case": case.name,
        "d": case.d,
        "n": [spec.n for spec in case.specs],
        "batch": case.specs[0].batch,
        "steps": case.steps,
        "share_waited": statistics.median(waits.share for waits in found),
        "shares": [waits.share for waits in found],
        "goal": case.goal,
        "step_ms": 1e3 * statistics.median(statistics.mean(waits.stepped_s) for waits in found),
        "longest_wait_ms": 1e3 * max(max(waits.waited_s) for waits in found),
        "first_batch_ms": 1e3 * statistics.median(waits.first_s for waits in found),
    }


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, once: whether it works, not what it reaches")
    parser.add_argument("--folder", type=Path, help="where to put the data; default the system's temporary folder")
    options = parser.parse_args()
    reuse_freed_memory(map_large=True)  # as the asset of the autoencoders does
    results = [measure(options.folder, case, 1 if options.quick else 3) for case in cases(options.quick)]
    for found in results:
        goal = f"goal < {found['goal']}" if found["goal"] else ""
        print(
            f"{found['case']:20s} waits {found['share_waited']:6.2%} of the time, {found['step_ms']:8.1f} ms a step, "
            f"longest wait {found['longest_wait_ms']:6.1f} ms, first batch {found['first_batch_ms']:6.0f} ms {goal}"
        )
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    record = {**machine, "quick": options.quick, "cases": results}
    path = Path(__file__).parent / "results" / "activation_feed.json"
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
