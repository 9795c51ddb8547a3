"""An inspection as text."""

from __future__ import annotations

from collections.abc import Mapping

from sae_pipeline.autoencoders.inspection import Inspection


def render_inspection(inspection: Inspection, densities: Mapping[int, float] | None = None) -> str:
    """A line per token with its latents and their values, then one per latent with its direct effects.

    Args:
        inspection: what to show.
        densities: share of held-out tokens that a latent is active on, where it is known.
    """
    width = max(len(repr(token.token)) for token in inspection.tokens)
    lines = [f"{'token':<{width}}  latent: value"]
    for token in inspection.tokens:
        listed = "  ".join(f"{latent}: {value:.3g}" for latent, value in token.latents) or "none"
        lines.append(f"{token.token!r:<{width}}  {listed}")
    if not inspection.effects:
        return "\n".join(lines)
    lines += ["", "direct effect of each latent's direction on the logits (the final norm's scale left out)"]
    for latent, effect in inspection.effects.items():
        density = f"  density {densities[latent]:.2%}" if densities is not None else ""
        lines += [f"{latent}{density}", f"  raises  {_listed(effect.raised)}", f"  lowers  {_listed(effect.lowered)}"]
    return "\n".join(lines)


def _listed(tokens: tuple[tuple[str, float], ...]) -> str:
    return "  ".join(f"{token!r} {value:+.3g}" for token, value in tokens)
