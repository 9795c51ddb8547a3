"""What an autoencoder sees in a prompt: the top latents of every token, and what each of them writes to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sae_pipeline.autoencoders.interventions import check_site
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site

if TYPE_CHECKING:
    from sae_pipeline.autoencoders.autoencoder import Autoencoder
    from sae_pipeline.subjects import Subject, SubjectTokenizer

EFFECTS: Final = 5
"""Tokens listed as raised, and as lowered, by one latent."""

INSIDE: Final = ("attn_z", "mlp_mid")
"""Places whose directions are no directions of the residual stream, so that they have no direct logits."""


@dataclass(frozen=True)
class TokenLatents:
    """A token of the prompt with its largest active latents and their values, largest first."""

    token: str
    latents: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class DirectEffect:
    """The tokens whose logits a latent's decoder direction raises most, and those it lowers most, with how much."""

    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Inspection:
    """Tokens in order, and the direct effects of the latents that they list; none for places inside a sublayer."""

    tokens: tuple[TokenLatents, ...]
    effects: Mapping[int, DirectEffect]


def inspect_prompt(
    sae: Autoencoder,
    subject: Subject,
    tokenizer: SubjectTokenizer,
    site: Site | str,
    prompt: str,
    *,
    bos: bool = True,
    top: int = 5,
) -> Inspection:
    """Encode a prompt and list the `top` latents of each of its tokens.

    Direct effects are those of `Subject.direct_logits` for unit decoder directions, among the tokenizer's tokens.

    Args:
        sae: the autoencoder.
        subject: the model.
        tokenizer: its tokenizer.
        site: where the autoencoder belongs, e.g. "code.2.resid_post".
        prompt: text; special tokens in it are not recognised.
        bos: start it with the beginning-of-text token, if there is one, as documents start. It is not listed.
        top: latents of a token.

    Raises:
        PipelineError: the prompt is empty or longer than the model's positions, `top` is below 1, or the site is not
            that of the autoencoder.
    """
    place = check_site(sae, subject, site)
    ids, start = _ids(tokenizer, prompt, subject.card.max_positions, bos=bos)
    if top < 1:
        raise PipelineError(f"{top} latents a token are none; ask for at least one")
    x_rd = subject.run(torch.tensor([ids]), [place])[place][0, start:].to(sae.W_enc)
    z_rn = sae.encode(sae.normaliser.normalise(x_rd)[0]).dense(sae.config.n)
    texts = [tokenizer.decode([token]) for token in ids[start:]]
    tokens = tuple(TokenLatents(text, tuple(_top(z_n, top))) for text, z_n in zip(texts, z_rn, strict=True))
    listed = sorted({latent for token in tokens for latent, _ in token.latents})
    return Inspection(tokens, {} if place.where in INSIDE else direct_effects(sae, subject, tokenizer, listed))


def direct_effects(
    sae: Autoencoder, subject: Subject, tokenizer: SubjectTokenizer, latents: Iterable[int]
) -> dict[int, DirectEffect]:
    """The direct effect of each latent, for an autoencoder of the residual stream or of what is added to it."""
    chosen = list(latents)
    effect_bv = subject.direct_logits(sae.W_dec[chosen])[:, : tokenizer.vocab_size]
    return {
        latent: DirectEffect(_extreme(effect_v, tokenizer, largest=True), _extreme(effect_v, tokenizer, largest=False))
        for latent, effect_v in zip(chosen, effect_bv, strict=True)
    }


def _ids(tokenizer: SubjectTokenizer, prompt: str, max_positions: int, *, bos: bool) -> tuple[list[int], int]:
    """Token ids, and where the prompt's own begin."""
    prompt_ids = tokenizer.encode_batch([prompt])[0]
    if not prompt_ids:
        raise PipelineError("the prompt is empty; give some text")
    first = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
    if len(first) + len(prompt_ids) > max_positions:
        raise PipelineError(
            f"the prompt has {len(prompt_ids)} tokens{' and a first one' if first else ''}, the model {max_positions} "
            "positions; shorten it"
        )
    return [*first, *prompt_ids], len(first)


def _top(z_n: Tensor, top: int) -> Iterable[tuple[int, float]]:
    values, latents = z_n.topk(min(top, len(z_n)))
    return [(latent, value) for latent, value in zip(latents.tolist(), values.tolist(), strict=True) if value > 0]


def _extreme(effect_v: Tensor, tokenizer: SubjectTokenizer, *, largest: bool) -> tuple[tuple[str, float], ...]:
    values, tokens = effect_v.topk(min(EFFECTS, len(effect_v)), largest=largest)
    return tuple((tokenizer.decode([t]), v) for t, v in zip(tokens.tolist(), values.tolist(), strict=True))
