"""Settings that are each possible and do not go together: refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sae_pipeline.store import PipelineError
from sae_pipeline.study import AutoencoderSpec, Site, Study, expand

if TYPE_CHECKING:
    from sae_pipeline.scaling import LawForm

_MEASURED_BY = {"nmse": "reconstruction", "dce": "downstream"}


def refuse_contradictions(study: Study, widths: Mapping[Site, int], sites: Mapping[str, Site]) -> None:
    """Raise PipelineError naming every contradiction in a study, each with what to write instead.

    Args:
        study: the study.
        widths: values per token at each site.
        sites: resolved site of each site key as the study writes it.
    """
    specs = {text: expand(study, site, text, widths[site]) for text, site in sites.items()}
    found = [*_corpora(study), *_rows(study, widths), *_recipes(study, specs), *_metrics(study), *_sites(study, specs)]
    if found:
        raise PipelineError(f"study {study.study!r} contradicts itself:\n  " + "\n  ".join(found))


def _corpora(study: Study) -> Iterator[str]:
    for corpus in study.corpora:
        for name in ("subset", "revision"):
            if getattr(corpus, name) is not None and not corpus.source.startswith("hf:"):
                yield f"corpora: {corpus.name}.{name} belongs to hf: sources only; leave it out"


def _rows(study: Study, widths: Mapping[Site, int]) -> Iterator[str]:
    from sae_pipeline.activations.layout import shard_file_bytes, shard_rows_of
    from sae_pipeline.activations.window import retain_of, window_shards

    config, dataset = study.activations, study.dataset
    if dataset.copy_ and config.retain != "all":
        yield (
            "dataset.copy: it keeps all rows, twice as wide, which activations.retain is to save; leave one of them out"
        )
    if dataset.copy_ and dataset.null is not None:
        yield f"dataset.copy: there are no rows to copy where dataset.null: {dataset.null} draws them; leave it out"
    shard_rows = shard_rows_of(study.tokens.train, config.shard_tokens)
    for width in sorted(set(widths.values())):
        try:
            shard_bytes = shard_file_bytes(shard_rows, width, config.dtype)
            window_shards(retain_of(config), dataset.resident_shards, shard_bytes)
        except PipelineError as error:
            yield str(error)


def _recipes(study: Study, specs: dict[str, dict[str, AutoencoderSpec]]) -> Iterator[str]:
    from sae_pipeline.autoencoders import RECIPES, settings_of

    for grid in study.autoencoders.grids:
        recipe = RECIPES.get(grid.recipe)
        if recipe is None:
            continue  # `unsupported` names it
        if (grid.parents is not None) != (recipe.trains is not None):
            need = "finetunes: name its parents" if recipe.trains is not None else "starts afresh: leave out parents"
            yield f"autoencoders: recipe {grid.recipe!r} {need}"
        for name in ("k", "l1", "prefixes"):
            if getattr(grid, name) is not None and name not in recipe.needs:
                yield f"autoencoders: {name} means nothing to recipe {grid.recipe!r}; leave it out"
        if grid.target_l0 is not None and "l1" not in recipe.needs:
            yield f"autoencoders: recipe {grid.recipe!r} has its k for a target; give k in place of target_l0"
    specs_of = {spec.key: spec for of_site in specs.values() for spec in of_site.values()}
    for spec in specs_of.values():
        if spec.recipe in RECIPES:
            if spec.parent and RECIPES[specs_of[spec.parent].recipe].encoder == "topk":
                yield f"autoencoder {spec.key}: its parent has a TopK, which no scale of a latent leaves as it is"
            try:
                settings_of(spec, d=1)
            except PipelineError as error:
                yield str(error)


def _metrics(study: Study) -> Iterator[str]:
    from sae_pipeline.evaluation import METRICS

    metrics = study.evaluation.metrics
    for name, parameters in metrics.items():
        if name in METRICS:
            try:
                METRICS[name].check_parameters(parameters)
            except PipelineError as error:
                yield f"evaluation.metrics: {error}"
            if study.dataset.null is not None and METRICS[name].needs_subject:
                yield (
                    f"dataset.null: {study.dataset.null} draws rows that belong to no token, so {name} has nothing to "
                    "splice into the subject; leave it out of the metrics (it is among the default ones), e.g. "
                    "evaluation.metrics: {reconstruction: {}, density: {}}, and what it measures out of "
                    "scaling.targets, e.g. scaling.targets: [nmse]"
                )
    if "all" not in metrics["reconstruction"].get("variants", ["all"]):
        yield "evaluation.metrics.reconstruction: variants must hold 'all'; tables and laws read it"
    for target in study.scaling.targets if _laws(study) else ():
        if _MEASURED_BY[target] not in metrics:
            yield (
                f"scaling.targets: {target} is not measured; add the metric {_MEASURED_BY[target]!r} to "
                f"evaluation.metrics, or take {target} out of scaling.targets"
            )


def _sites(study: Study, specs: Mapping[str, Mapping[str, AutoencoderSpec]]) -> Iterator[str]:
    # Only a hold-out that somebody wrote down is refused; the default's result says why it could not be made.
    asked = "hold_out" in study.scaling.model_fields_set and study.scaling.hold_out != "none" and _laws(study)
    for text, members in specs.items():
        if not members:
            yield f"sites: no grid trains an autoencoder at {text}; name it in a grid's `sites`, or take it out"
        elif asked and (reason := _against_hold_out(study, list(members.values()))):
            yield (
                f"scaling.hold_out: {study.scaling.hold_out} cannot be checked at {text} ({reason}); "
                "add sizes n to a grid, or set scaling.hold_out: none"
            )


def _laws(study: Study) -> list[str]:
    return [name for name in study.scaling.forms if name != "table"]


def _against_hold_out(study: Study, specs: Sequence[AutoencoderSpec]) -> str | None:
    """Why no law of the study can be fitted without its largest size, or None where one can."""
    from sae_pipeline.scaling import FORMS, LawForm

    # With `auto` both variants are tried; the one without the irreducible term asks for less.
    forms = [FORMS[LawForm(name, study.scaling.irreducible == "with").label] for name in _laws(study)]
    reasons = [reason for form in forms for reason in _reasons(form, specs)]
    if None in reasons:
        return None
    return next((reason for reason in reasons if reason), "laws compare runs of equal k, and no grid has k")


def _reasons(form: LawForm, specs: Sequence[AutoencoderSpec]) -> Iterator[str | None]:
    """For each group of runs that `scaling` would fit the form to, why its largest size cannot be held out."""
    import numpy as np

    from sae_pipeline.scaling import Points
    from sae_pipeline.scaling.identification import reason_before

    runs = [(spec.recipe, spec.n, spec.k) for spec in specs if spec.k is not None]
    for group in sorted({(recipe, 0 if form.joint else k) for recipe, _, k in runs}):
        cells = [(n, k) for recipe, n, k in runs if (recipe, 0 if form.joint else k) == group]
        largest = max(n for n, _ in cells)
        rest = np.array([cell for cell in cells if cell[0] < largest], dtype=np.float64).reshape(-1, 2)
        reason = reason_before(form, Points(rest[:, 0], rest[:, 1], np.ones(len(rest)), 0.0, 0.0))
        yield reason and f"without n = {largest}: {reason}"
