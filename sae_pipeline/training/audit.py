"""The statistics frame that the gate of the autoencoder stage reads."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.store import Draft
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training.ending import Ending
from sae_pipeline.training.held_out import measure
from sae_pipeline.training.run import DONE, LOG


def audit_frame(draft: Draft, held_out_xd: Tensor) -> pd.DataFrame:
    """One row about the autoencoder a finished draft holds, read back from its files.

    Columns: autoencoder, recipe, n, d, k (n where the recipe fixes none: no token can have more), tokens,
    tokens_expected (whole batches within the budget, or up to the end that its log calls for), skipped_steps,
    non_finite (weights), decoder_norm_error (largest |‖row‖ − 1|), normaliser, dead (share of the latents at the
    end of training, by its window), and on the held-out normalised rows [rows, d]: nmse (NaN where a weight is not
    finite), mean_l0, mean_l0_share (of k; 1 where the recipe fixes none), max_l0, silent, n_rows.
    """
    autoencoder = Autoencoder.load(draft.path)
    config, figures = autoencoder.config, draft.read_json(DONE)
    weights = autoencoder.parameters.named().values()
    row = {
        "autoencoder": draft.key,
        "recipe": config.recipe,
        "n": config.n,
        "d": config.d,
        "k": config.k or config.n,
        "tokens": figures["tokens"],
        "tokens_expected": _expected_tokens(draft, autoencoder),
        "skipped_steps": figures["skipped_steps"],
        "non_finite": sum(int((~weight.isfinite()).sum()) for weight in weights),
        "decoder_norm_error": float((autoencoder.W_dec.double().norm(dim=1) - 1).abs().max()),
        "normaliser": autoencoder.normaliser.name,
        "dead": figures["train"]["dead"],
    }
    row |= vars(measure(autoencoder, held_out_xd))
    return pd.DataFrame([row | {"mean_l0_share": row["mean_l0"] / config.k if config.k else 1.0}])


def _expected_tokens(draft: Draft, autoencoder: Autoencoder) -> int:
    spec = AutoencoderSpec.model_validate(autoencoder.provenance["spec"])
    log = pd.read_parquet(draft.file(LOG)).to_dict("records")
    rows = ({str(name): value for name, value in row.items()} for row in log)
    return Ending(spec, rows=rows).steps * spec.batch
