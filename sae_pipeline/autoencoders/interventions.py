"""What a subject computes when an autoencoder stands in for one of its activations, as it is or with latents edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site

if TYPE_CHECKING:
    from sae_pipeline.autoencoders.autoencoder import Autoencoder
    from sae_pipeline.subjects import Subject

Edit = Callable[[Tensor], Tensor]
"""From the latents [rows, n], which it may write into, to those that are decoded in their place."""


def check_site(sae: Autoencoder, subject: Subject, site: Site | str) -> Site:
    """The site, parsed if it is text (ValueError if it is not one).

    PipelineError if the model lacks it, or it has another width than the rows that `sae` reads.
    """
    place = Site.parse(site) if isinstance(site, str) else site
    if subject.width(place) != sae.config.d:
        raise PipelineError(
            f"site {place} has {subject.width(place)} values per token and the autoencoder reads {sae.config.d}; "
            "name the site it was trained on"
        )
    return place


@contextmanager
def splice(
    sae: Autoencoder, subject: Subject, site: Site | str, *, edit: Edit | None = None, keep_error: bool = False
) -> Iterator[None]:
    """Put the reconstruction in place of the activation at every position, in every pass of the body.

    With u, s, m from the normaliser, each token's own (x = s·u + m), z = encode(u) and z′ = edit(z):

        x ← s·(z′ W_dec + b_pre) + m        or, with `keep_error`,        x ← x + s·(z′ − z) W_dec

    so that with `keep_error` whatever the autoencoder misses stays, and without an edit nothing changes. All contexts
    of a batch are edited alike. Afterwards the model is as before, also after an exception.

    Args:
        sae: the autoencoder.
        subject: the model; call its `logits` or `run` in the body.
        site: where, e.g. "code.2.resid_post".
        edit: of the latents; see `ablate` and `steer`.
        keep_error: change the activation by the edit's effect alone.

    Raises:
        PipelineError: the model lacks the site, it is of another width than the autoencoder, or, from within a pass,
            `edit` gave another shape.
        ValueError: `site` is not written as a site.
    """
    place = check_site(sae, subject, site)

    def spliced(x_cld: Tensor) -> Tensor:
        x_rd = x_cld.flatten(0, 1).to(sae.W_enc)
        return _put(sae, x_rd, edit, keep_error=keep_error).view_as(x_cld)

    with subject.editing(place, (lambda x: x) if keep_error and edit is None else spliced):
        yield


def ablate(sae: Autoencoder, latents: Iterable[int]) -> Edit:
    """The edit that sets some latents to 0. PipelineError if the autoencoder lacks one."""
    chosen = torch.tensor([_latent(sae, latent) for latent in latents], dtype=torch.int64)
    return lambda z_rn: z_rn.index_fill(1, chosen.to(z_rn.device), 0.0)


def steer(sae: Autoencoder, latent: int, strength: float) -> Edit:
    """The edit that adds `strength` to a latent at every position: each token moves by strength·s·d_latent.

    `strength` is in units of the latent's values. PipelineError if the autoencoder lacks it or it is not finite.
    """
    chosen = _latent(sae, latent)
    if not math.isfinite(strength):
        raise PipelineError(f"a strength of {strength} leaves no logits; give a finite number")

    def edit(z_rn: Tensor) -> Tensor:
        z_rn[:, chosen] += strength
        return z_rn

    return edit


def _put(sae: Autoencoder, x_rd: Tensor, edit: Edit | None, *, keep_error: bool) -> Tensor:
    u_rd, scale = sae.normaliser.normalise(x_rd)
    codes = sae.encode(u_rd)
    if edit is None:
        return sae.normaliser.denormalise(sae.decode(codes), scale)
    z_rn = codes.dense(sae.config.n)
    edited_rn = edit(z_rn.clone())
    if edited_rn.shape != z_rn.shape:
        raise PipelineError(f"the edit made {tuple(edited_rn.shape)} of latents {tuple(z_rn.shape)}; keep the shape")
    if keep_error:
        return x_rd + scale.norm * ((edited_rn - z_rn) @ sae.W_dec)
    return sae.normaliser.denormalise(edited_rn @ sae.W_dec + sae.b_pre, scale)


def _latent(sae: Autoencoder, latent: int) -> int:
    if not 0 <= latent < sae.config.n:
        raise PipelineError(f"latent {latent} does not exist; the autoencoder has 0 to {sae.config.n - 1}")
    return int(latent)
