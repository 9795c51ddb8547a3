"""Probes: how well the best latent of an autoencoder, or a few, answers binary questions about a token.

Gao et al. 2024 §4.2: for every task a logistic regression on every latent by itself, of which the best one's
cross-entropy counts; the mean over tasks. Here latents are chosen on training rows and scored on test rows, beside
what they are to be held against.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np

from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.evaluation.inputs import Metric, MetricInputs, ratio_tables
from sae_pipeline.evaluation.probes.means import TaskMeans
from sae_pipeline.evaluation.probes.measure import SiteProbes, as_table
from sae_pipeline.evaluation.probes.probe_data import (
    ProbeData,
    audit_probe_data,
    build_probe_data,
    check_width,
    make_probe_set,
)
from sae_pipeline.evaluation.probes.settings import CODES, SETTINGS, Settings
from sae_pipeline.evaluation.tables import MetricResult
from sae_pipeline.study import PROBES, VERSIONS

__all__ = ["METRIC", "ProbeData", "audit_probe_data", "build_probe_data", "make_probe_set"]

VERSION = VERSIONS["eval_probes"]


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    sites: dict[str, SiteProbes] = {}
    return [_measure_one(one, sites) for one in inputs]


def _measure_one(inputs: MetricInputs, sites: dict[str, SiteProbes]) -> MetricResult:
    data, normaliser = _data_of(inputs), inputs.autoencoder.normaliser
    settings, device = Settings.of(inputs.parameters), inputs.autoencoder.device
    shared = f"{id(data)} {json.dumps(normaliser.to_config())} {settings} {inputs.seed} {device}"
    if shared not in sites:
        sites[shared] = SiteProbes(data, normaliser, device, settings, inputs.seed)
    site = sites[shared]
    results = as_table(site.measure(inputs.autoencoder, inputs.progress), inputs.key)
    tasks = [task.name for task in data.probe_set.tasks]
    means = TaskMeans(results, tasks, settings)
    rows, stats = ratio_tables(inputs, VERSION, np.arange(len(tasks)), list(means.ratios()))
    facts = {"tasks": tasks, "settings": settings.as_json()}
    return MetricResult("probes", VERSION, rows, stats, means.curves(inputs), probe_results=results, facts=facts)


def _data_of(inputs: MetricInputs) -> ProbeData:
    if inputs.probe_data is None:
        raise EvaluationError("metric probes reads the site's probe set; pass it in as probe_data")
    check_width(inputs.probe_data, inputs.autoencoder.config.d)
    return inputs.probe_data


METRIC: Final = Metric(
    PROBES, VERSION, needs_subject=False, measure=_measure, parameters={"codes": CODES}, numbers=SETTINGS
)
"""Figures are means over tasks, which are their units; each also over the `_lexical` ones, which the token alone
solves, and the `_other` ones.

probe_loss: cross-entropy in nats of the best latent: variants `pre` (pre-activations) and `post` (codes); the same
choice on permuted training labels (`pre_permuted`, `post_permuted`); of the best single channel (`channel`), the best
of n random directions (`random`), the token, the token and the one before (`token`, `token_pair`) and a regression on
the whole activation (`linear`). probe_gain: how much lower a code's loss is than a control's. probe_wins: on what
share of tasks it is lower. probe_accuracy: of the probes of the k latents whose means differ most (`pre_k=4`), and of
channels and principal components (`component_k=4`). probe_budget: the area under accuracy over k, by trapezia, divided
by the range of k; 1 if every probe is always right.

Curves `<code>_accuracy`: accuracy over k. Table `probe_results`: every probe of every task.
"""
