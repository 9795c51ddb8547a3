"""How much the activations of every recipe are shrunk: refined against the encoder's own (Gao et al. 2024 §5.1).

Needs `sae-pipeline run recipes`; reads what it published. Writes results/shrinkage.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder, Codes
from sae_pipeline.dataset import Dataset
from sae_pipeline.measures import Reconstruction
from sae_pipeline.store import Artefact, Pointers, read_json

CHECKOUT = Path(__file__).resolve().parent.parent
OUTPUTS, STUDY, SITE, ROWS = CHECKOUT / "outputs", "recipes", "code.2.resid_post", 4000


def nmse(sae: Autoencoder, u_bd: Tensor, codes: Codes) -> float:
    measure = Reconstruction(sae.config.d)
    measure.update(u_bd, sae.decode(codes))
    return measure.nmse


def main() -> None:
    if not (OUTPUTS / STUDY / "summary.json").exists():
        print("shrinkage: run `sae-pipeline run recipes` first; nothing done")
        return
    pointers = Pointers(OUTPUTS, STUDY)

    def artefact(name: str) -> Artefact:
        return Artefact.open(OUTPUTS / str(pointers.get(name)))

    u_bd = Dataset.open(artefact(f"dataset/{SITE}"), artefact(f"activations/{SITE}")).sample[:ROWS]
    rows = {}
    for name in sorted(read_json(OUTPUTS / STUDY / "current.json")):
        if not name.startswith(f"autoencoder/{SITE}/"):
            continue
        sae = Autoencoder.load(artefact(name).path)
        codes = sae.encode(u_bd)
        if float(codes.l0_b.double().mean()) > 64:
            continue  # more latents on than half of the width: any row can be had exactly
        refined, on = sae.refine(u_bd, codes), codes.values > 0
        rows[name.rsplit("/", 1)[1]] = {
            "mean_activation": float(codes.values[on].mean()),
            "mean_change": float((refined.values[on] - codes.values[on]).mean()),
            "nmse": nmse(sae, u_bd, codes),
            "nmse_refined": nmse(sae, u_bd, refined),
        }
    result = {"rows": len(u_bd), "autoencoders": rows}
    (CHECKOUT / "benchmarks" / "results" / "shrinkage.json").write_text(json.dumps(result, indent=2) + "\n")
    for key, row in rows.items():
        change = row["mean_change"] / row["mean_activation"]
        print(f"{key:45s} {change:+7.1%}  NMSE {row['nmse']:.4f} -> {row['nmse_refined']:.4f}")


if __name__ == "__main__":
    main()
