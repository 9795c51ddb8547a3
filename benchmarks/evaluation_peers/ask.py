"""A package's own functions on the fixture: `python ask.py sae-lens|sae-bench FOLDER` prints JSON; NaN is null.

Both packages have the same functions under `evals`; those of sae-lens take a scaler too.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doubles import Model, Sae, Store

SMALL_BATCH = 4


def functions(name: str) -> tuple[Any, dict[str, Any]]:
    """The module, and what its function for spliced models takes beside the fixture."""
    if name == "sae-lens":
        from sae_lens import evals
        from sae_lens.training.activation_scaler import ActivationScaler

        return evals, {"activation_scaler": ActivationScaler()}
    from sae_bench.evals.core import main

    return main, {"activation_store": None}


class Asked:
    """One package and the fixture."""

    def __init__(self, name: str, folder: Path) -> None:
        self._evals, self._more = functions(name)
        self._scaler = {name: value for name, value in self._more.items() if value is not None}
        self._folder, self.arrays = folder, np.load(folder / "fixture.npz")
        self._ids, self._layer = self.arrays["ids"], int(self.arrays["layer"])

    def of_rows(self, sae: Sae, batch: int) -> dict[str, float]:
        """All figures of `get_sparsity_and_variance_metrics`."""
        names = ("l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics")
        found, _ = self._evals.get_sparsity_and_variance_metrics(
            sae=sae, model=Model(self._folder / "model", self._layer), activation_store=Store(self._ids),
            n_batches=len(self._ids) // batch, eval_batch_size_prompts=batch, model_kwargs={},
            **{f"compute_{name}": True for name in names}, **self._scaler,
        )  # fmt: skip
        return found

    def spliced(self, model: str) -> dict[str, float]:
        """Means of `get_recons_loss` over all positions but the last of a context, which has no next token."""
        found = self._evals.get_recons_loss(
            sae=Sae(self.arrays), model=Model(self._folder / model, self._layer),
            batch_tokens=torch.from_numpy(self._ids), compute_kl=True, compute_ce_loss=True, **self._more,
        )  # fmt: skip
        return {name: value[:, : self._ids.shape[1] - 1].double().mean().item() for name, value in found.items()}


def probed(arrays: Any) -> tuple[float, float]:
    """Accuracy that sae-bench reports of probes of coin tosses, and theirs on rows that chose nothing."""
    from sae_bench.evals.sparse_probing.probe_training import test_probe_gpu, train_probe_gpu

    torch.manual_seed(0)
    x = {name: torch.from_numpy(arrays[f"x_{name}"]) for name in ("train", "test", "fresh")}
    y = {name: torch.from_numpy(arrays[f"y_{name}"]) for name in x}
    found = []
    with torch.enable_grad():
        for task in range(len(x["train"])):
            given = [side[name][task] for name in ("train", "test") for side in (x, y)]
            probe, reported = train_probe_gpu(*given, dim=x["train"].shape[-1], batch_size=16, epochs=20, lr=1e-3)
            found.append((reported, test_probe_gpu(x["fresh"][task], y["fresh"][task], 500, probe)))
    reported, fresh = np.mean(found, axis=0)
    return float(reported), float(fresh)


def answers(name: str, folder: Path) -> dict[str, float]:
    asked = Asked(name, folder)
    sae, contexts = Sae(asked.arrays), len(asked.arrays["ids"])
    rows, spliced = asked.of_rows(sae, contexts), asked.spliced("model")
    ce_clean, ce_spliced, ce_zero = (
        spliced[f"ce_loss_{which}"] for which in ("without_sae", "with_sae", "with_ablation")
    )
    found = {
        "explained_variance": rows["explained_variance"],
        "explained_variance_of_the_mean": asked.of_rows(Sae(asked.arrays, silent=True), contexts)["explained_variance"],
        "mse": rows["mse"],
        "mse_in_small_batches": asked.of_rows(sae, SMALL_BATCH)["mse"],
        "l0": rows["l0"],
        "cosine": rows["cossim"],
        "l2_ratio": rows["l2_ratio"],
        "relative_bias": rows["relative_reconstruction_bias"],
        "ce_clean": ce_clean,
        "ce_spliced": ce_spliced,
        "ce_zero": ce_zero,
        "loss_recovered": (ce_zero - ce_spliced) / (ce_zero - ce_clean),
        "kl": spliced["kl_div_with_sae"],
        "kl_zero": spliced["kl_div_with_ablation"],
        "kl_confident": asked.spliced("confident")["kl_div_with_sae"],
    }
    if name == "sae-bench":
        found["probe_test"], found["probe_fresh"] = probed(asked.arrays)
    return found


def quietly(call: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Packages print; standard output is for the answer."""
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        return call()


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = quietly(lambda: answers(sys.argv[1], Path(sys.argv[2])))
    print(json.dumps({name: None if math.isnan(value) else value for name, value in found.items()}))
