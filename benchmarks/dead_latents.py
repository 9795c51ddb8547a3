"""Why one autoencoder of the demo ends with half its latents dead: n = 4096, k = 4 under other choices.

Trains single members on the demo's dataset (run `make demo` first) and writes results/dead_latents.json. About ten
minutes; the figures do not depend on the machine's load.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from resources.workspace import CHECKOUT, Workspace
from sae_pipeline.dataset import Dataset
from sae_pipeline.store import Draft
from sae_pipeline.study import AutoencoderSpec, load_study
from sae_pipeline.training import Member, train

PAPER_LR = 2e-4 * (2**14 / 4096) ** 0.5  # Gao et al. 2024, figure 3
VARIANTS = (
    ("topk-n2048-k4", {}),
    ("topk-n4096-k4", {}),
    ("topk-n4096-k4", {"auxk_k": None}),
    ("topk-n4096-k4", {"auxk_k": 4}),
    ("topk-n4096-k4", {"auxk_k": 1}),
    ("topk-n4096-k4", {"adam_betas": (0.9, 0.99), "auxk_k": None}),
    ("topk-n4096-k4", {"lr": PAPER_LR}),
    ("topk-n4096-k4", {"lr": PAPER_LR, "auxk_k": None}),
)


def outcome(spec: AutoencoderSpec, dataset: Dataset) -> dict[str, float]:
    """Training NMSE at the end, share dead (100 k tokens), latents alive."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft.open(Path(folder) / "draft", stage="autoencoders", key=spec.key, identity="0" * 64, lineage={})
        figures = train({spec.key: Member(spec, draft)}, dataset, checkpoint_every_s=1e9)[spec.key].figures["train"]
        draft.close()
    return {"nmse": figures["nmse"], "dead": figures["dead"], "alive": round(spec.n * (1 - figures["dead"]))}


def main() -> None:
    work = Workspace(load_study(CHECKOUT / "studies" / "demo.yaml"), CHECKOUT, CHECKOUT / "outputs")
    site = work.lineage.of_asset("dataset")[0].name.partition("/")[2]
    dataset = Dataset.open(work.artefact(f"dataset/{site}"), work.artefact(f"activations/{site}"))
    specs = work.lineage.specs_at(site)
    rows = []
    for key, changed in VARIANTS:
        rows.append({"autoencoder": key, **changed, **outcome(specs[key].model_copy(update=changed), dataset)})
        print(rows[-1], flush=True)
    path = CHECKOUT / "benchmarks" / "results" / "dead_latents.json"
    path.write_text(json.dumps({"dead_after_tokens": 100_000, "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
