"""The champion: is a new version of an autoencoder better than the best so far, on the same held-out documents?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.bootstrap import compare_paired
from sae_pipeline.evaluation.reconstruction import ReconstructionSums
from sae_pipeline.store import Artefact
from sae_pipeline.study import NULL


def challenge(
    challenger: Artefact, incumbent: Artefact | None, evaluation_set: EvaluationSet, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Compare two trained autoencoders by NMSE, paired over documents.

    The challenger is promoted if there is no incumbent that can be measured here, or if the whole 95 % interval of the
    difference says that it is better: a tie changes nothing for those who use the incumbent. An autoencoder trained on
    a null control never takes the place of one that was not.

    Args:
        challenger: artefact of the new autoencoder.
        incumbent: artefact of the best so far, or None.
        evaluation_set: the documents, of the challenger's site.
        resamples: of the paired bootstrap.
        seed: of the paired bootstrap.

    Returns:
        promoted, reason, challenger_id, incumbent_id, nmse, incumbent_nmse, and of the difference (challenger minus
        incumbent): difference, se, ci_lo, ci_hi, p_better, n_units; null where there was nothing to compare.
    """
    stats = _unit_stats(challenger, evaluation_set)
    verdict: dict[str, Any] = {"challenger_id": challenger.identity, "nmse": _nmse(stats)}
    verdict |= dict.fromkeys(
        ("incumbent_id", "incumbent_nmse", "difference", "se", "ci_lo", "ci_hi", "p_better", "n_units")
    )
    if incumbent is None:
        return verdict | {"promoted": True, "reason": "the first version"}
    verdict["incumbent_id"] = incumbent.identity
    if incumbent.identity == challenger.identity:
        return verdict | {"promoted": False, "reason": "it is the best version already"}
    if (ours := _null(challenger)) != (theirs := _null(incumbent)):
        promoted = ours is None or theirs is not None  # a null never takes the place of what was learnt from a model
        return verdict | {"promoted": promoted, "reason": f"null control: {ours or 'none'}, so far {theirs or 'none'}"}
    if Autoencoder.load(incumbent.path).config.d != evaluation_set.d:
        return verdict | {"promoted": True, "reason": "the best version so far was of another subject or site"}
    incumbent_stats = _unit_stats(incumbent, evaluation_set)
    if len(stats) < 2:
        one = {"incumbent_nmse": _nmse(incumbent_stats), "n_units": len(stats), "promoted": False}
        return verdict | one | {"reason": "one held-out document gives no interval"}
    found = compare_paired(stats, incumbent_stats, resamples, seed)
    promoted = found.ci_hi < 0
    return verdict | vars(found) | {
        "incumbent_nmse": _nmse(incumbent_stats),
        "promoted": promoted,
        "reason": "its NMSE is lower, the whole interval below 0" if promoted else "it is not surely better",
    }  # fmt: skip


def _null(artefact: Artefact) -> str | None:
    null: str | None = artefact.lineage.get("config", {}).get(NULL)
    return null


def _unit_stats(artefact: Artefact, evaluation_set: EvaluationSet) -> pd.DataFrame:
    sums = ReconstructionSums.of(Autoencoder.load(artefact.path), evaluation_set, ("all",))
    ratio = sums.ratio("nmse", "all")
    return pd.DataFrame(
        {"metric": "nmse", "variant": "all", "unit_id": sums.documents, "num": ratio.num_u, "den": ratio.den_u}
    )


def _nmse(stats: pd.DataFrame) -> float:
    return float(stats["num"].sum() / stats["den"].sum())
