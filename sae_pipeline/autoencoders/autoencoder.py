"""An autoencoder: parameters, the normaliser its inputs went through, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_pipeline.autoencoders import interventions, refine, refold, swap
from sae_pipeline.autoencoders.codes import Codes
from sae_pipeline.autoencoders.files import from_files, to_files
from sae_pipeline.autoencoders.recipes import AutoencoderConfig, check_k, recipe_of
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.kernels.reference import pre_activations
from sae_pipeline.store import atomic


@dataclass
class Autoencoder:
    """x̂ = z W_dec + b_pre with z = activation(W_enc (x − b_pre) + b_enc), on normalised rows x.

    Parameters: W_enc (n, d), b_enc (n,), W_dec (n, d) with unit rows, b_pre (d,), and for recipes with thresholds
    `threshold` (n,): a latent is π where π exceeds its threshold. `provenance` is free-form JSON that
    travels with the file: where it came from, never needed to use it.
    """

    config: AutoencoderConfig
    parameters: Parameters
    normaliser: Normaliser
    provenance: dict[str, Any] = field(default_factory=dict)

    with_topk = swap.with_topk
    with_threshold = swap.with_threshold
    with_mean_l0 = swap.with_mean_l0
    with_normaliser = refold.refold
    refine = refine.refine
    splice = interventions.splice
    ablate = interventions.ablate
    steer = interventions.steer

    @property
    def W_enc(self) -> Tensor:
        """Encoder, one row per latent (n, d)."""
        return self.parameters.W_enc

    @property
    def b_enc(self) -> Tensor:
        """Encoder bias (n,)."""
        return self.parameters.b_enc

    @property
    def W_dec(self) -> Tensor:
        """Decoder directions, one unit row per latent (n, d)."""
        return self.parameters.W_dec

    @property
    def b_pre(self) -> Tensor:
        """Subtracted before encoding, added after decoding (d,)."""
        return self.parameters.b_pre

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.W_enc.device

    def to(self, device: torch.device | str) -> Autoencoder:
        """The same autoencoder with its parameters on another device."""
        moved = self.parameters.map(lambda tensor: tensor.to(device))
        return Autoencoder(self.config, moved, self.normaliser, self.provenance)

    @torch.no_grad()
    def pre_activations(self, u_bd: Tensor) -> Tensor:
        """π [b, n] of normalised rows [b, d]."""
        return pre_activations(self.parameters, u_bd)

    @torch.no_grad()
    def encode(self, u_bd: Tensor) -> Codes:
        """Codes of normalised rows [b, d]: fixed width for top-k recipes, ragged otherwise."""
        pre_bn, encoder = self.pre_activations(u_bd), recipe_of(self.config.recipe).encoder
        if encoder == "topk":
            values, indices = pre_bn.topk(check_k(self.config.recipe, self.config.n, self.config.k), dim=1)
            return Codes(indices, values.relu())
        if encoder == "threshold":
            pre_bn = pre_bn.where(pre_bn > self.parameters.extra["threshold"], 0.0)
        return Codes.ragged(pre_bn.relu())

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Reconstructions [b, d] in the normalised space."""
        x_hat_bd = torch.nn.functional.embedding_bag(
            codes.indices, self.W_dec, codes.indptr,
            mode="sum", per_sample_weights=codes.values, include_last_offset=codes.indptr is not None,
        )  # fmt: skip
        return x_hat_bd + self.b_pre

    @torch.no_grad()
    def codes_top(self, u_bd: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The `width` largest ReLU(π) of each row, values and indices [b, width], falling; 0 where none is positive.

        Their first k are this autoencoder's own codes if it is a top-k one with k ≤ width.
        """
        values, indices = self.pre_activations(u_bd).topk(width, dim=1)
        return values.relu(), indices

    def save(self, folder: Path) -> None:
        """Write `autoencoder.safetensors` and `config.json` into an existing folder, each atomically."""
        for name, parts in self.to_files().items():
            atomic.replace(Path(folder) / name, *parts)

    def to_files(self) -> dict[str, list[atomic.Bytes]]:
        """The content of the files that `save` writes, by name, in parts: views of the weights, no copies."""
        return to_files(self.config, self.parameters, self.normaliser, self.provenance)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
        """Read what `save` wrote; never runs code from the file.

        Raises PipelineError for anything missing, unknown or of the wrong shape, NewerFormat for a later format.
        """
        return cls(*from_files(Path(folder))).to(device)
