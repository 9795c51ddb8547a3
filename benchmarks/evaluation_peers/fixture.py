"""What every package is given, and what this project says of it: `python fixture.py FOLDER` prints JSON.

The folder gets a small random GPT-2 (`model`), the same with logits far apart (`confident`), and `fixture.npz`: tokens,
a TopK autoencoder of the activations behind block LAYER, and tasks whose labels are coin tosses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from sae_pipeline.activations import EvaluationSet, build_evaluation_set
from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.embedded.concepts.logistic import fit_logistic
from sae_pipeline.evaluation import METRICS, CodesCache, MetricInputs, build_codes
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import Draft
from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects import Subject, load_subject

D, N, K, LAYER, VOCABULARY, CONTEXTS, LENGTH = 32, 128, 8, 1, 128, 32, 24
SMALL_BATCH = 4
SITE = Site("fixture", LAYER, "resid_post")
TASKS, TRAIN, TEST, FRESH = 60, 300, 60, 1000


@dataclass
class Contexts:
    """Held-out contexts, all of whose positions count, each a document of its own."""

    ids_nl: np.ndarray

    n = CONTEXTS
    context = LENGTH
    n_rows = CONTEXTS * LENGTH
    document = np.arange(CONTEXTS, dtype=np.int32)
    lengths = np.full(CONTEXTS, LENGTH)
    row_offsets = np.arange(CONTEXTS + 1) * LENGTH

    def split(self, name: str) -> Contexts:
        return self

    def ids(self, a: int, b: int) -> np.ndarray:
        return self.ids_nl[a:b]

    def row_mask(self, a: int, b: int) -> np.ndarray:
        return np.ones((b - a, LENGTH), np.bool_)


def save_models(folder: Path) -> None:
    """Activations have means well above their spread, as those of trained models do."""
    torch.manual_seed(0)
    shape = {"n_embd": D, "n_layer": 3, "n_head": 2, "n_positions": LENGTH, "vocab_size": VOCABULARY}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.transformer.wte.weight.data *= 4
    model.transformer.wpe.weight.data += 2 * torch.randn(D)
    for name, sharper in (("model", 1.0), ("confident", 300.0)):
        model.transformer.ln_f.weight.data *= sharper
        model.save_pretrained(folder / name)
        Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / name / "tokenizer.json"))


def load(folder: Path) -> Subject:
    return load_subject(SubjectConfig(alias="fixture", id=str(folder), device="cpu"), root=folder)


def open_draft(path: Path) -> Draft:
    return Draft.open(path, stage="evaluation", key="fixture", identity="0" * 64, lineage={})


def autoencoder(mean_d: torch.Tensor) -> Autoencoder:
    W_dec = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(1)), dim=1)
    parameters = Parameters(0.4 * W_dec, torch.zeros(N), W_dec.clone(), mean_d.clone())
    return Autoencoder(AutoencoderConfig("topk", N, D, K), parameters, Normaliser("none", D))


def predicting_the_mean(mean_d: torch.Tensor) -> Autoencoder:
    made = autoencoder(mean_d)
    made.b_enc.fill_(-1e6)
    return made


def figures(name: str, subject: Subject, evaluation_set: EvaluationSet, made: Autoencoder) -> pd.Series:
    """Values of the metric by metric/variant."""
    with tempfile.TemporaryDirectory() as folder, open_draft(Path(folder) / "codes") as draft:
        codes = build_codes(draft, made, evaluation_set, sae_id="a" * 64, evaluation_id="e" * 64)
        cache = CodesCache.open(draft.publish(codes))
        result = METRICS[name].run(
            MetricInputs("topk", "a" * 64, "e" * 64, made, cache, evaluation_set, 10, 0, subject=subject)
        )
    found = result.metrics.assign(name=result.metrics["metric"] + "/" + result.metrics["variant"])
    values: pd.Series = found.set_index("name")["value"]
    sums = result.unit_stats.groupby(["metric", "variant"])[["num", "n"]].sum()
    if name == "reconstruction":
        values["mse"] = sums.loc[("nmse", "all"), "num"] / sums.loc[("nmse", "all"), "n"]
    return values


def evaluated(folder: Path, ids_nl: np.ndarray, micro_batch: int) -> tuple[Subject, EvaluationSet]:
    subject = load(folder)
    with open_draft(folder / f"set-{micro_batch}") as draft:
        n_tokens = CONTEXTS * LENGTH
        build_evaluation_set(subject, Contexts(ids_nl), SITE, draft, n_tokens=n_tokens, micro_batch=micro_batch)
        return subject, EvaluationSet.open(draft.publish({}))


def coin_tosses() -> dict[str, np.ndarray]:
    """Features [task, row, d] and labels [task, row] that have nothing to do with them."""
    g = np.random.default_rng(0)
    rows = {"train": TRAIN, "test": TEST, "fresh": FRESH}
    x = {f"x_{name}": g.standard_normal((TASKS, count, D)).astype(np.float32) for name, count in rows.items()}
    return x | {f"y_{name}": g.integers(0, 2, (TASKS, count)) for name, count in rows.items()}


def accuracies(tosses: dict[str, np.ndarray]) -> Iterator[tuple[float, float]]:
    """Of a linear probe of each task on its test rows, which it has not seen, and on fresh ones."""
    for task in range(TASKS):
        fit = fit_logistic(tosses["x_train"][task].astype(np.float64), tosses["y_train"][task] == 1, 1 / TRAIN)
        yield tuple(
            float(((fit.logit(tosses[f"x_{rows}"][task]) > 0) == (tosses[f"y_{rows}"][task] == 1)).mean())
            for rows in ("test", "fresh")
        )


def main(folder: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    save_models(folder)
    ids_nl = np.random.default_rng(0).integers(0, VOCABULARY, (CONTEXTS, LENGTH))
    plain = evaluated(folder / "model", ids_nl, CONTEXTS)
    mean_d = torch.from_numpy(plain[1].mean_d).float()
    made, tosses = autoencoder(mean_d), coin_tosses()
    arrays = {name: getattr(made, name).numpy() for name in ("W_enc", "b_enc", "W_dec", "b_pre")}
    np.savez(folder / "fixture.npz", ids=ids_nl, k=K, layer=LAYER, **arrays, **tosses)
    rows, spliced = figures("reconstruction", *plain, made), figures("downstream", *plain, made)
    of_the_mean = figures("reconstruction", *plain, predicting_the_mean(mean_d))
    in_small_batches = figures("reconstruction", *evaluated(folder / "model", ids_nl, SMALL_BATCH), made)
    confident = figures("downstream", *evaluated(folder / "confident", ids_nl, CONTEXTS), made)
    clean_ce = float(plain[1].clean_ce[:, :-1].mean())
    test, fresh = np.mean(list(accuracies(tosses)), axis=0)
    return {
        "explained_variance": rows["explained_variance/all"],
        "explained_variance_of_the_mean": of_the_mean["explained_variance/all"],
        "mse": rows["mse"],
        "mse_in_small_batches": in_small_batches["mse"],
        "l0": rows["l0/all"],
        "cosine": rows["cosine/all"],
        "l2_ratio": rows["l2_ratio/all"],
        "relative_bias": rows["relative_bias/all"],
        "ce_clean": clean_ce,
        "ce_spliced": clean_ce + spliced["dce/all"],
        "ce_zero": clean_ce + spliced["dce/zero_ablation"],
        "loss_recovered": spliced["loss_recovered/zero"],
        "kl": spliced["kl/all"],
        "kl_zero": spliced["kl/zero_ablation"],
        "kl_confident": confident["kl/all"],
        "probe_test": test,
        "probe_fresh": fresh,
    }


if __name__ == "__main__":
    print(json.dumps({name: float(value) for name, value in main(Path(sys.argv[1])).items()}))
