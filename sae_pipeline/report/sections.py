"""What the page says about one site: planes, laws, training, density, positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from sae_pipeline.report import figures
from sae_pipeline.report.formatting import number
from sae_pipeline.report.html import Markup, join, tag
from sae_pipeline.report.inputs import SiteInputs
from sae_pipeline.report.law_tables import fits_tables, refusals_table
from sae_pipeline.report.matched import by_autoencoder, latent_densities, matched_table
from sae_pipeline.report.tables import matched_rows
from sae_pipeline.scaling import ScalingResult


@dataclass(frozen=True)
class Topic:
    """One titled part of the page; `slug` is its anchor."""

    slug: str
    title: str
    body: Markup


def site_topics(site: SiteInputs, place: int) -> list[Topic]:
    """The topics of one site, in reading order; `place` is its number on the page and keeps anchors apart."""
    matched = matched_table(site.metrics, site.autoencoders)
    prefix = f"s{place}"
    return [
        Topic(f"{prefix}-planes", "Sparsity against quality", _planes(matched, prefix)),
        Topic(f"{prefix}-laws", "Quality against size", _laws(site.scaling, prefix)),
        Topic(f"{prefix}-training", "Training", _training(site, prefix)),
        Topic(f"{prefix}-density", "Latent density", _density(site, prefix)),
        Topic(f"{prefix}-positions", "Error by position", _positions(site, prefix)),
    ]


def drawn(figure: Figure, name: str, caption: str | None = None) -> Markup:
    """A figure as inline SVG with its caption."""
    return tag("figure", Markup(figures.svg(figure, name)), tag("figcaption", caption) if caption else None)


def absent(text: str) -> Markup:
    """A quiet line where a part has nothing to show yet."""
    return tag("p", text, class_="note")


def _planes(matched: pd.DataFrame, prefix: str) -> Markup:
    if matched.empty:
        return absent("No autoencoder of this site has been published yet.")
    caption = (
        "One point per autoencoder, lines join equal n; bars are 95 % intervals over held-out documents. "
        "Lower and further left is better. Hover for keys."
    )
    planes = (
        drawn(figures.plane(matched, name), f"{prefix}-plane-{name}", caption if name == "nmse" else spliced)
        for name, spliced in (
            ("nmse", ""),
            ("dce", "ΔCE: rise of the subject's loss with the reconstruction spliced in."),
        )
    )
    note = (
        "Equal k stand together. ± is half the 95 % interval; bold marks the lowest NMSE and ΔCE of each k. "
        "EV: explained variance; rec.: share of the loss recovered against zero and mean ablation; dead: at the end of "
        "training; silent@T: never fired on the held-out tokens; dense: share of L0 in latents that fire on over 10 % "
        "of them. Hover over a value for what it rests on or why it is missing."
    )
    return join(
        tag("div", *planes, class_="figures"),
        tag("h3", "All autoencoders, matched by sparsity"),
        matched_rows(matched),
        tag("p", note, class_="note"),
    )


def _laws(scaling: ScalingResult | None, prefix: str) -> Markup:
    if scaling is None or scaling.points.empty:
        return absent("No law has been fitted yet.")
    shown = [
        drawn(figures.laws(scaling, target, form=form), f"{prefix}-{target}-{form.lower()}")
        for target, form in _worth_drawing(scaling)
    ]
    note = (
        "Where a law was accepted, lines are the preferred fits and bands their 95 % intervals, with residuals below; "
        "a hollow marker is what the same law, fitted without the largest n, predicts there."
    )
    parts = [tag("div", *shown, class_="figures"), tag("p", note, class_="note")]
    if scaling.fits.empty:
        parts.append(absent("No law was accepted; the reasons are below."))
    else:
        parts += [tag("h3", "Fitted laws"), fits_tables(scaling.fits), tag("p", _LAWS_NOTE, class_="note")]
    if not scaling.refusals.empty:
        parts += [tag("h3", "Refused laws"), refusals_table(scaling.refusals)]
    return join(*parts)


_LAWS_NOTE = (
    "Brackets are 95 % intervals; the held-out error is that of predicting the largest n from the others. The joint "
    "law is exp(α + β_k ln k + β_n ln n + γ ln k ln n), with e(k) = exp(ζ + η ln k). “At centre” means at the "
    "geometric mean of the sizes (and k) fitted, where the points are; α and single exponents of the joint law hold at "
    "n = k = 1, far outside them. A faint row extrapolates worse than the same law with or without its term e."
)


def _worth_drawing(scaling: ScalingResult) -> Iterator[tuple[str, Literal["L_N", "L_NK"]]]:
    """Each target by k, and once more with its joint law where one was accepted."""
    usable = scaling.points[scaling.points["used"] & scaling.points["k"].notna()]
    fits = scaling.fits
    for target in ("nmse", "dce"):
        if (usable["target"] == target).any():
            yield target, "L_N"
        if ((fits["target"] == target) & (fits["form"] == "L_NK")).any():
            yield target, "L_NK"


def _training(site: SiteInputs, prefix: str) -> Markup:
    if not site.training:
        return absent("No training record is at hand.")
    window = (
        ""
        if site.dead_window_tokens is None
        else f" (no activation in the last {number(site.dead_window_tokens)} tokens)"
    )
    return join(
        drawn(
            figures.error_curves(site.training, site.autoencoders),
            f"{prefix}-error",
            "NMSE of the training batches, before the weights are averaged; one panel per recipe and k.",
        ),
        drawn(
            figures.dead_curves(site.training, site.autoencoders),
            f"{prefix}-dead",
            f"Share of dead latents{window}; it can only rise once the window has passed.",
        ),
    )


def _density(site: SiteInputs, prefix: str) -> Markup:
    densities = latent_densities(site.curves, site.autoencoders)
    if not densities:
        return absent("No latent density has been measured yet.")
    tokens = max(histogram.n_tokens for histogram in densities.values())
    caption = (
        f"Latents by density: the share of T = {number(tokens)} held-out tokens on which a latent fires. "
        "Dots at the left: latents that never fired, whose density is below 3/T with 95 % confidence."
    )
    return drawn(figures.density_panels(densities, site.autoencoders), f"{prefix}-density-panels", caption)


def _positions(site: SiteInputs, prefix: str) -> Markup:
    parts = []
    for name, label, caption in _BY_POSITION:
        curves = by_autoencoder(site.curves, f"{name}_by_position")
        if curves:
            figure = figures.by_position(curves, site.autoencoders, label)
            parts.append(drawn(figure, f"{prefix}-{name}-by-position", caption))
    return join(*parts) if parts else absent("Nothing has been measured by position yet.")


_BY_POSITION = (
    (
        "nmse",
        "NMSE",
        "NMSE of held-out tokens by position in their context. Position 0 sees no context: it is a dot, "
        "or an arrowhead where it lies outside the range of the others (hover for its value).",
    ),
    ("dce", "ΔCE (nats/token)", "Rise of the loss of the next token, by the position it is predicted from."),
)
