"""What a subject is, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects.architectures import architecture_of, wheres_of
from sae_pipeline.subjects.errors import SubjectError
from sae_pipeline.subjects.source import Source, check_weights, count_values, fingerprint, locate, read_config
from sae_pipeline.subjects.tokenizer import tokenizer_of
from sae_pipeline.subjects.untrained import untrained_fingerprint


@dataclass(frozen=True)
class SubjectCard:
    """Shape and identity of a subject model.

    Attributes:
        architecture: `model_type` of its Hugging Face config, e.g. `gpt2`.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads of a block.
        d_head: width of one head; `attn_z` is `n_heads * d_head` wide.
        d_mlp: hidden width of the MLP.
        vocab_size: rows of the embedding, at least the tokenizer's vocabulary.
        max_positions: longest context in tokens.
        norm: `layernorm` or `rmsnorm`.
        n_params: parameters, tied ones counted once.
        dtype: the dtype it computes in, as the study says.
        fingerprint: hub commit, or sha256 of configuration and weights (of an untrained twin: of configuration and how
            its weights are drawn); does not depend on where the files lie.
        tokenizer_fingerprint: sha256 of the serialised tokenizer.
        tied_unembedding: whether the unembedding shares the embedding's weights.
        wheres: the sites each block has.
    """

    architecture: str
    d_model: int
    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    max_positions: int
    norm: str
    n_params: int
    dtype: str
    fingerprint: str
    tokenizer_fingerprint: str
    tied_unembedding: bool
    wheres: tuple[str, ...]

    def check(self, site: Site) -> None:
        """Make sure that the model has a site.

        Raises:
            SubjectError: it has not; the message lists the sites it has.
        """
        if site.where not in self.wheres:
            reason = " (attention and MLP run in parallel)" if site.where == "resid_mid" else ""
            raise SubjectError(
                f"site {site}: a {self.architecture} block has no {site.where}{reason}; it has {', '.join(self.wheres)}"
            )
        if not 0 <= site.layer < self.n_layers:
            raise SubjectError(f"site {site}: the subject has layers 0 to {self.n_layers - 1}")

    def width(self, site: Site) -> int:
        """Values per token at a site."""
        self.check(site)
        return {"attn_z": self.n_heads * self.d_head, "mlp_mid": self.d_mlp}.get(site.where, self.d_model)


def describe(config: SubjectConfig, *, root: Path) -> SubjectCard:
    """Read a subject's card from its configuration and the headers of its weight files; no weights enter memory.

    Args:
        config: the subject part of a study. Of a hub repository only the small files are downloaded.
        root: folder that a relative local path starts from.

    Raises:
        SubjectError: the model cannot be found, is incomplete, or is of an unsupported architecture.
    """
    return card_of(config, locate(config, root=root, weights=False))


def card_of(config: SubjectConfig, source: Source) -> SubjectCard:
    """Build the card of a subject whose files have been located; see `describe`."""
    raw = read_config(source)
    architecture = architecture_of(str(raw["model_type"]))
    hf = hf_config(source)
    tokenizer = tokenizer_of(source)
    if tokenizer.largest_id >= hf.vocab_size:
        raise SubjectError(
            f"subject {source.name!r}: its tokenizer gives ids up to {tokenizer.largest_id}, its model knows "
            f"{hf.vocab_size} (vocab_size in config.json); is it another model's tokenizer? Save the right one beside "
            "the model"
        )
    return SubjectCard(
        architecture=hf.model_type,
        d_model=hf.hidden_size,
        n_layers=hf.num_hidden_layers,
        n_heads=hf.num_attention_heads,
        d_head=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        d_mlp=_d_mlp(hf),
        vocab_size=hf.vocab_size,
        max_positions=hf.max_position_embeddings,
        norm=architecture.norm,
        n_params=_count_parameters(source, hf, config.attention),
        dtype=config.dtype,
        fingerprint=_fingerprint(config, source, raw),
        tokenizer_fingerprint=tokenizer.fingerprint,
        tied_unembedding=bool(hf.tie_word_embeddings),
        wheres=wheres_of(architecture, hf),
    )


def _fingerprint(config: SubjectConfig, source: Source, raw: dict[str, Any]) -> str:
    if config.weights == "untrained":
        return untrained_fingerprint(raw)
    return fingerprint(source, raw, [] if source.commit else check_weights(source))


def hf_config(source: Source) -> Any:
    """Load the Hugging Face config of a located subject.

    Raises:
        SubjectError: its values make no sense to the installed transformers.
    """
    try:
        return AutoConfig.from_pretrained(source.folder, local_files_only=True)
    except Exception as error:  # transformers validates with many exception types; all of them mean a bad config.json
        raise SubjectError(f"subject {source.name!r}: config.json is not usable: {error}") from error


def _d_mlp(hf: Any) -> int:
    if hf.model_type == "gpt2":
        return int(hf.n_inner or 4 * hf.hidden_size)
    return int(hf.intermediate_size)


def _count_parameters(source: Source, hf: Any, attention: str) -> int:
    """Count on the meta device: weight files may hold buffers (GPT-2's causal masks) that are no parameters."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf, attn_implementation=attention)
    except Exception as error:  # as above; an attention kernel that the architecture lacks is among them
        raise SubjectError(
            f"subject {source.name!r} cannot be built with subject.attention: {attention} ({error}); "
            "try the other of sdpa and eager"
        ) from error
    return int(model.num_parameters())


def check_complete(config: SubjectConfig, n_params: int, *, root: Path) -> None:
    """Make sure that a subject's weights are here and as many as its configuration asks for; a hub's are fetched.

    An untrained twin has no files to check.

    Args:
        config: the subject part of a study.
        n_params: parameters of the model, as its card says.
        root: folder that a relative local path starts from.

    Raises:
        SubjectError: weight files are missing, damaged, or hold fewer values than the model has parameters.
    """
    if config.weights == "untrained":
        return
    source = locate(config, root=root, weights=True)
    held = count_values(check_weights(source))
    if held < n_params and "quantization_config" not in read_config(source):
        raise SubjectError(
            f"subject {source.name!r}: its weight files hold {held:,} values and config.json asks for "
            f"{n_params:,}; they are incomplete or belong to another model, download both again"
        )
