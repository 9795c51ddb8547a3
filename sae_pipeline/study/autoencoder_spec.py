"""From grids to autoencoders: one fully resolved, frozen spec per trained member."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sae_pipeline.store.errors import PipelineError
from sae_pipeline.study.keys import Site, autoencoder_key, finetuned_key, split_site
from sae_pipeline.study.models import AutoencoderDefaults, Grid, Study
from sae_pipeline.study.parts import EXECUTION_ONLY, Part
from sae_pipeline.study.training import Stop


class AutoencoderSpec(Part):
    """Everything that determines one trained autoencoder besides its dataset.

    `lr` is the resolved rate, `tokens` the budget in activation rows, `warmup_steps` in optimiser steps,
    `decay_last` and `l1_warmup` fractions of the steps. `auxk_k` is None where AuxK is off. `milestones` are in tokens,
    whole batches, rising.
    """

    key: str = Field(json_schema_extra=EXECUTION_ONLY)
    recipe: str
    n: int
    k: int | None = None
    l1: float | None = None
    target_l0: float | None = None
    prefixes: tuple[int, ...] | None = None
    parent: str | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    options: dict[str, float] | None = None
    seed: int = 0
    batch: int
    tokens: int
    lr: float
    warmup_steps: int = 0
    decay_last: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 6.25e-10
    grad_clip: float | None = None
    ema: float | None = 0.999
    init: Literal["tied", "independent"] = "tied"
    auxk_k: int | None = None
    auxk_alpha: float = 0.0
    dead_after_tokens: int
    resample: tuple[float, ...] | None = None
    l1_warmup: float = 0.05
    stop: Stop | None = None
    milestones: tuple[int, ...] | None = None
    keep_before_decay: Literal[True] | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps within the token budget; the rest of a batch is not used."""
        return self.tokens // self.batch


def expand(study: Study, site: Site, site_text: str, d: int) -> dict[str, AutoencoderSpec]:
    """All autoencoders of the study at one site, by key, in the order of the grids.

    Args:
        study: the study.
        site: the resolved site.
        site_text: the site as the study writes it (`code.3of4.resid_post`), which grids may also name.
        d: width of the site.

    Raises:
        PipelineError: two cells share a key, k exceeds n, or the dead window or the warm-up is longer than the run.
    """
    specs: dict[str, AutoencoderSpec] = {}
    for grid in study.autoencoders.grids:
        if not _names_site(grid, site, site_text):
            continue
        for spec in _cells(grid, study.autoencoders.defaults, d, specs):
            if spec.key in specs:
                raise PipelineError(
                    f"autoencoders: two grid entries make the key {spec.key!r} at {site}; give one a `tag`"
                )
            milestones = study.training.milestones_of(spec.tokens, spec.batch)
            specs[spec.key] = spec.model_copy(update={"milestones": milestones})
    return specs


def _names_site(grid: Grid, site: Site, site_text: str) -> bool:
    if grid.sites is None:
        return True
    return bool({site.where, str(site), site_text} & set(grid.sites))


def check_grid_sites(study: Study) -> None:
    """Refuse a grid that names a site the study does not have."""
    known = set(study.sites) | {split_site(text)[2] for text in study.sites}
    for grid in study.autoencoders.grids:
        for name in grid.sites or ():
            if name not in known:
                raise ValueError(
                    f"grid {grid.recipe!r}: site {name!r} is none of the study's: {', '.join(sorted(known))}"
                )


def _cells(
    grid: Grid, defaults: AutoencoderDefaults, d: int, known: Mapping[str, AutoencoderSpec]
) -> list[AutoencoderSpec]:
    settings = defaults.model_copy(
        update={name: value for name in type(defaults).model_fields if (value := getattr(grid, name, None)) is not None}
    )
    if grid.parents is not None:
        parents = [_parent(grid, key, known) for key in grid.parents]
        return [
            _spec(grid, settings, d, parent.n, {"parent": parent.key}, seed)
            for parent, seed in itertools.product(parents, settings.seeds)
        ]
    assert grid.n is not None
    sparsity = [name for name in ("k", "l1", "target_l0") if getattr(grid, name) is not None]
    return [
        _spec(grid, settings, d, n, dict(zip(sparsity, values, strict=True)), seed)
        for n, *values, seed in itertools.product(grid.n, *(getattr(grid, name) for name in sparsity), settings.seeds)
    ]


def _parent(grid: Grid, key: str, known: Mapping[str, AutoencoderSpec]) -> AutoencoderSpec:
    if key not in known:
        near = ", ".join(difflib.get_close_matches(key, known, n=3, cutoff=0.3)) or "none"
        raise PipelineError(
            f"grid {grid.recipe!r}: its parent {key!r} is no autoencoder of a grid above it at this site; near: {near}"
        )
    return known[key]


def _spec(
    grid: Grid, settings: AutoencoderDefaults, d: int, n: int, sparsity: dict[str, Any], seed: int
) -> AutoencoderSpec:
    k, l1, target_l0, parent = (sparsity.get(name) for name in ("k", "l1", "target_l0", "parent"))
    if parent is None:
        key = autoencoder_key(grid.recipe, n, k=k, l1=l1, target_l0=target_l0, tag=grid.tag, seed=seed)
    else:
        key = finetuned_key(grid.recipe, parent, tag=grid.tag, seed=seed)
    window = settings.dead_after_tokens or max(settings.batch, min(10_000_000, settings.tokens // 20))
    if k is not None and k > n:
        raise PipelineError(f"autoencoder {key}: k = {k} exceeds n = {n}; lower k or raise n")
    _check_lengths(key, settings, window)
    if settings.keep_before_decay:
        _check_extendable(key, grid, settings)
    auxk = settings.auxk if k is not None and grid.auxk != "off" else None
    return AutoencoderSpec(
        key=key,
        recipe=grid.recipe,
        n=n,
        k=k,
        l1=l1,
        target_l0=target_l0,
        prefixes=grid.prefixes,
        parent=parent,
        options=grid.options,
        seed=seed,
        batch=settings.batch,
        tokens=settings.tokens,
        lr=settings.lr.at(n),
        warmup_steps=settings.schedule.warmup,
        decay_last=settings.schedule.decay_last,
        adam_betas=settings.adam_betas,
        adam_eps=settings.adam_eps,
        grad_clip=settings.grad_clip,
        ema=settings.ema,
        init=settings.init,
        dead_after_tokens=window,
        resample=settings.resample,
        l1_warmup=settings.l1_warmup,
        stop=settings.stop,
        keep_before_decay=settings.keep_before_decay,
        auxk_k=None if auxk is None else min(n, d // 2 if auxk.k == "d/2" else auxk.k),
        auxk_alpha=0.0 if auxk is None else auxk.alpha,
    )


def _check_lengths(key: str, settings: AutoencoderDefaults, window: int) -> None:
    """Refuse a run too short for its batch, its dead window or its warm-up."""
    steps, warmup = settings.tokens // settings.batch, settings.schedule.warmup
    if not steps:
        raise PipelineError(
            f"autoencoder {key}: {settings.tokens:,} tokens do not fill one batch of {settings.batch:,}; "
            "lower batch or raise tokens"
        )
    if window >= settings.tokens:
        raise PipelineError(
            f"autoencoder {key}: dead_after_tokens = {window:,} is no shorter than the run of {settings.tokens:,} "
            "tokens, so no latent could ever count as dead; shorten it"
        )
    if warmup >= steps:
        raise PipelineError(
            f"autoencoder {key}: schedule.warmup = {warmup:,} steps is no shorter than the run of {steps:,} steps, "
            "so the learning rate never reaches its value; shorten it"
        )


def _check_extendable(key: str, grid: Grid, settings: AutoencoderDefaults) -> None:
    """Refuse to keep a state for longer budgets where what leads to it depends on the budget."""
    depends = {
        "l1 and target_l0, whose warm-up and search are": grid.l1 is not None or grid.target_l0 is not None,
        "resample, whose places are": settings.resample is not None,
        "stop, which is": settings.stop is not None,
        "dead_after_tokens, if not given, is": settings.dead_after_tokens is None,
    }
    for what, found in depends.items():
        if found:
            raise PipelineError(
                f"autoencoder {key}: keep_before_decay promises that a longer budget goes on from this one, but {what} "
                "reckoned from the budget; give dead_after_tokens, leave the others out, or drop keep_before_decay"
            )
