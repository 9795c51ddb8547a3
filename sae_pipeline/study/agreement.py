"""What the parts of a study must agree on, checked as soon as it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_pipeline.study.keys import split_site

if TYPE_CHECKING:
    from sae_pipeline.study.models import Study

_TAKEN = ("artefacts",)


def check_agreement(study: Study) -> None:
    """Raise ValueError, saying what to change, where parts that are each possible do not fit together."""
    if study.study in _TAKEN:
        raise ValueError(f"study: {study.study!r} is the folder of all studies' artefacts; choose another name")
    _check_sites(study)
    _check_corpora(study)
    _check_budgets(study)


def _check_sites(study: Study) -> None:
    if not study.sites:
        raise ValueError("sites: name at least one, e.g. gpt2.8.resid_post: {}")
    for text in study.sites:
        alias, _, _ = split_site(text)
        if alias != study.subject.alias:
            raise ValueError(f"site {text!r}: alias {alias!r} is not the subject's, {study.subject.alias!r}")


def _check_corpora(study: Study) -> None:
    names = [corpus.name for corpus in study.corpora]
    if len(set(names)) != len(names):
        raise ValueError(f"corpora: two share a name among {names}; give each its own")
    if not any(corpus.weight for corpus in study.corpora):
        raise ValueError("corpora: every weight is 0; raise one")


def _check_budgets(study: Study) -> None:
    tokens, wanted = study.tokens, study.evaluation.tokens
    for name, budget in (("train", tokens.train), ("held_out", tokens.held_out)):
        if budget < tokens.context:
            raise ValueError(f"tokens.{name} = {budget:,} is below one context of {tokens.context:,}; raise it")
    if wanted > tokens.held_out:
        raise ValueError(
            f"evaluation.tokens = {wanted:,} exceeds tokens.held_out = {tokens.held_out:,}; "
            "lower the first or raise the second"
        )
