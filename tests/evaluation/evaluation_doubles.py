"""A tiny subject, its evaluation set, and autoencoders whose behaviour is known in advance."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from probe_doubles import planted
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from sae_pipeline.activations import EvaluationSet, build_evaluation_set
from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import CodesCache, MetricInputs, build_codes
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import Draft
from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects import Subject, load_subject

CONTEXT, VOCAB, D = 12, 80, 16
SITE = Site("tiny", 1, "resid_post")
EVALUATION_ID = "e" * 64


@dataclass
class MemoryContexts:
    """Contexts as `tokens.Contexts` gives them; documents of one to four contexts, padded tails, id 0 not eligible."""

    ids_nl: np.ndarray
    lengths: np.ndarray
    document: np.ndarray

    @property
    def n(self):
        return len(self.ids_nl)

    @property
    def context(self):
        return self.ids_nl.shape[1]

    @property
    def mask_nl(self):
        return (np.arange(self.context) < self.lengths[:, None]) & (self.ids_nl != 0)

    @property
    def n_rows(self):
        return int(self.mask_nl.sum())

    @property
    def row_offsets(self):
        return np.concatenate([[0], np.cumsum(self.mask_nl.sum(axis=1))]).astype(np.int64)

    def ids(self, a, b):
        return self.ids_nl[a:b]

    def row_mask(self, a, b):
        return self.mask_nl[a:b]


@dataclass
class MemoryTokens:
    held_out: MemoryContexts

    def split(self, name):
        return getattr(self, name)


def make_tokens(n=40, seed=2):
    rng = np.random.default_rng(seed)
    ids_nl = rng.integers(0, VOCAB, (n, CONTEXT))
    document = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n].astype(np.int32)
    lengths = np.full(n, CONTEXT)
    tails = np.append(np.diff(document) != 0, True)
    lengths[tails] = rng.integers(2, CONTEXT + 1, int(tails.sum()))
    ids_nl[np.arange(CONTEXT) >= lengths[:, None]] = 0
    return MemoryTokens(MemoryContexts(ids_nl, lengths, document))


def tiny_subject(folder: Path) -> Subject:
    torch.manual_seed(11)
    shape = {"n_embd": D, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": VOCAB}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_subject(SubjectConfig(alias="tiny", id=str(folder), device="cpu"), root=folder)


def open_draft(path: Path, identity="0" * 64) -> Draft:
    return Draft.open(path, stage="evaluation", key="tiny", identity=identity, lineage={})


def make_evaluation_set(subject: Subject, path: Path, micro_batch=4) -> EvaluationSet:
    with open_draft(path) as draft:
        build_evaluation_set(subject, make_tokens(), SITE, draft, n_tokens=250, micro_batch=micro_batch)
        return EvaluationSet.open(draft.publish({}))


def autoencoder(recipe="topk", n=48, k=4, normaliser="paper", seed=0, b_pre=None) -> Autoencoder:
    """A random one."""
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(n, D, generator=generator)
    W_dec = torch.nn.functional.normalize(W_enc, dim=1)
    b_pre = torch.zeros(D) if b_pre is None else b_pre
    parameters = Parameters(0.3 * W_enc, torch.zeros(n) - 0.1 * (recipe == "relu"), W_dec, b_pre)
    return Autoencoder(AutoencoderConfig(recipe, n, D, k), parameters, Normaliser(normaliser, D))


def identity_autoencoder(normaliser="none") -> Autoencoder:
    """û = u exactly: one latent for each sign of each coordinate."""
    eye = torch.cat([torch.eye(D), -torch.eye(D)])
    parameters = Parameters(eye, torch.zeros(2 * D), eye.clone(), torch.zeros(D))
    return Autoencoder(AutoencoderConfig("relu", 2 * D, D), parameters, Normaliser(normaliser, D))


def constant_autoencoder(b_pre: torch.Tensor, normaliser="paper") -> Autoencoder:
    """û = b_pre: no latent ever fires."""
    made = autoencoder("relu", 8, None, normaliser, b_pre=b_pre)
    made.b_enc.fill_(-1e6)
    return made


def make_codes(made: Autoencoder, evaluation_set: EvaluationSet, path: Path, sae_id="a" * 64) -> CodesCache:
    with open_draft(path) as draft:
        summary = build_codes(draft, made, evaluation_set, sae_id=sae_id, evaluation_id=EVALUATION_ID)
        return CodesCache.open(draft.publish(summary))


def make_inputs(made: Autoencoder, evaluation_set: EvaluationSet, path: Path, **changes) -> MetricInputs:
    sae_id = changes.pop("sae_id", "a" * 64)
    codes = make_codes(made, evaluation_set, path, sae_id)
    settings = {
        "autoencoder_key": "topk-n48-k4", "sae_id": sae_id, "evaluation_id": EVALUATION_ID, "autoencoder": made,
        "codes": codes, "evaluation_set": evaluation_set, "resamples": 200, "seed": 0,
        "probe_data": planted(D),
    }  # fmt: skip
    return MetricInputs(**(settings | changes))


def normalised_rows(made: Autoencoder, evaluation_set: EvaluationSet):
    """All rows [T, d] in the normalised space, float32, with document and position."""
    x, document, position = evaluation_set.rows(0, evaluation_set.n_contexts)
    return made.normaliser.normalise(x)[0], document, position


def value_of(result, metric, variant="all"):
    rows = result.metrics[(result.metrics["metric"] == metric) & (result.metrics["variant"] == variant)]
    assert len(rows) == 1, result.metrics[["metric", "variant"]]
    return rows.iloc[0]
