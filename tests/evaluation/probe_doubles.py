"""Probe tasks whose answers are known: labels planted in the activations, in the token, or nowhere."""

import numpy as np

from sae_pipeline.embedded.concepts import Dropped, ProbeSet, Task
from sae_pipeline.embedded.concepts.controls import fit_controls
from sae_pipeline.evaluation.probes.probe_data import ProbeData

N_DOCUMENTS, PER_DOCUMENT, VOCABULARY = 50, 16, 30


def planted(d, direction=None, *, noise=0.5, seed=0):
    """Tasks `planted` (the sign of the activation along a direction, with noise), `token` (odd ids), `noise` (coin
    tosses), `one_class` (only positive rows) and `few` (three rows), all asked at the same places."""
    random = np.random.default_rng(seed)
    ids_cl = random.integers(VOCABULARY, size=(N_DOCUMENTS, PER_DOCUMENT)).astype(np.int32)
    context_r, position_r = (
        np.repeat(np.arange(N_DOCUMENTS), PER_DOCUMENT),
        np.tile(np.arange(PER_DOCUMENT), N_DOCUMENTS),
    )
    x_rd = random.normal(size=(context_r.size, d)).astype(np.float32)
    direction = np.eye(d)[0] if direction is None else direction / np.linalg.norm(direction)
    labels = {
        "planted": x_rd @ direction + noise * random.normal(size=context_r.size) > 0,
        "token": ids_cl[context_r, position_r] % 2 == 1,
        "noise": random.random(context_r.size) < 0.5,
        "one_class": np.ones(context_r.size, np.bool_),
    }
    labels["few"] = labels["noise"]
    rows = {name: np.arange(3 if name == "few" else context_r.size) for name in labels}
    at = np.concatenate(list(rows.values()))
    probe_set = ProbeSet(
        ids_cl=ids_cl,
        length_c=np.full(N_DOCUMENTS, PER_DOCUMENT),
        document_c=np.arange(N_DOCUMENTS),
        documents=tuple(map(str, range(N_DOCUMENTS))),
        tasks=tuple(Task(name, "planted") for name in labels),
        task_r=np.repeat(np.arange(len(labels)), [len(index) for index in rows.values()]),
        context_r=context_r[at],
        position_r=position_r[at],
        label_r=np.concatenate([labels[name][index] for name, index in rows.items()]),
        test_r=context_r[at] % 5 < 2,
        dropped=(Dropped("rare", "rows in 2 train and 1 test files; 30 each are needed"),),
    )
    x_ud = np.zeros_like(x_rd)
    x_ud[probe_set.places.place_r[: len(x_rd)]] = x_rd
    return with_controls(probe_set, x_ud)


def with_controls(probe_set, x_ud):
    usable = [task for task in range(len(probe_set.tasks)) if task not in ProbeData(probe_set, x_ud, {}).reasons]
    return ProbeData(probe_set, x_ud, {task: fit_controls(probe_set, task, x_ud) for task in usable})
