"""What metrics ask of the subject, in FLOPs; those that only read codes are not counted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sae_pipeline.study import AutoencoderSpec, Study

_EXCERPT_TOKENS = 180  # run for an example until its pattern is found: from 83 to 393 over the demo's autoencoders
_LIKELY_L0 = 16  # of a recipe that is told neither k nor target_l0


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of the subject for a token: up to the site, and from there to the logits."""

    before: float
    behind: float


def metric_flops(study: Study, specs: Collection[AutoencoderSpec], held_out: int, token: TokenFlops) -> float:
    """FLOPs of the subject in all metrics of all autoencoders of a site.

    Attention within a context is left out, as everywhere in a plan. Contexts that a metric reads once for all
    autoencoders are counted once.
    """
    flops: dict[str, Callable[[], float]] = {
        "downstream": lambda: 2 * token.behind * held_out * len(specs),
        "ablation": lambda: sum(_ablation(study, spec, held_out, token) for spec in specs),
        "context_length": lambda: _context_length(study, len(specs), held_out, token),
        "explanations": lambda: _explanations(study, token) * len(specs),
    }
    return sum(flops[name]() for name in study.evaluation.metrics if name in flops)


def _ablation(study: Study, spec: AutoencoderSpec, held_out: int, token: TokenFlops) -> float:
    """At each position half a context once, then a window for the base, every latent and the references."""
    from sae_pipeline.evaluation.ablation import BASES, NUMBERS, REFERENCES, REFERENCES_PER_POSITION

    given = study.evaluation.metrics["ablation"]
    positions, window = (given.get(name, NUMBERS[name].default) for name in ("tokens", "window"))
    latents = spec.k or spec.target_l0 or _LIKELY_L0
    passes = 1 + latents + len(REFERENCES) * min(latents, REFERENCES_PER_POSITION)
    windows = len(given.get("base", BASES[:1])) * passes * window
    return float(min(positions, held_out) * token.behind * (study.tokens.context / 2 + windows))


def _context_length(study: Study, n_autoencoders: int, held_out: int, token: TokenFlops) -> float:
    """Each token in a long and in a short context: as it is, of which the long one runs whole, and spliced."""
    from sae_pipeline.evaluation.context_length import NUMBERS

    tokens = study.evaluation.metrics["context_length"].get("tokens", NUMBERS["tokens"].default)
    return float(min(tokens, held_out) * (token.before + 2 * (1 + n_autoencoders) * token.behind))


def _explanations(study: Study, token: TokenFlops) -> float:
    from sae_pipeline.evaluation.explanations.metric import EXAMPLES, LATENTS

    given = study.evaluation.metrics["explanations"]
    examples = given.get("latents", LATENTS.default) * given.get("examples", EXAMPLES.default)
    return float(examples * _EXCERPT_TOKENS * token.before)
