"""Examples against a search of every (row, latent) in plain Python."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_doubles import autoencoder, constant_autoencoder, make_inputs, value_of

from sae_pipeline.evaluation import METRICS, EvaluationError, examples

METRIC = METRICS["examples"]


@pytest.fixture(scope="module")
def inputs(evaluation_set, tmp_path_factory):
    made = make_inputs(autoencoder(), evaluation_set, tmp_path_factory.mktemp("codes") / "c")
    return replace(made, parameters={"top": 3, "random": 4, "before": 2, "after": 1})


@pytest.fixture(scope="module")
def found(inputs):
    return METRIC.run(inputs)


def rows_of(result, kind, latent):
    table = result.examples
    return table[(table["kind"] == kind) & (table["latent"] == latent)]


def activations(inputs):
    """{latent: [(value, row)]}, and where each row is: (context, position)."""
    codes, held_out = inputs.codes.codes(0, inputs.codes.n_rows), inputs.evaluation_set
    fires = {}
    for row, (latents, values) in enumerate(zip(codes.indices.tolist(), codes.values.tolist(), strict=True)):
        for latent, value in zip(latents, values, strict=True):
            if value > 0:
                fires.setdefault(latent, []).append((value, row))
    mask = held_out.mask(0, held_out.n_contexts).tolist()
    return fires, [(c, at) for c, line in enumerate(mask) for at, eligible in enumerate(line) if eligible]


def test_the_top_are_the_largest_one_a_document(inputs, found):
    fires, place = activations(inputs)
    documents = inputs.evaluation_set.document
    for latent, pairs in fires.items():
        expected, seen = [], set()
        for value, row in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
            document = documents[place[row][0]]
            if document not in seen:
                seen.add(document)
                expected.append((row, value, document))
        rows = rows_of(found, "top", latent).sort_values("rank")
        assert list(zip(rows["row"], rows["value"], rows["document"], strict=True)) == expected[:3]
        assert list(rows["rank"]) == list(range(len(rows)))
    assert set(found.examples["latent"]) == set(fires)


def test_the_random_are_any_activations_drawn_without_repetition(inputs, found):
    fires, _ = activations(inputs)
    for latent, pairs in fires.items():
        rows = rows_of(found, "random", latent)
        assert len(rows) == len(set(rows["row"])) == min(4, len(pairs))
        assert set(zip(rows["value"], rows["row"], strict=True)) <= set(pairs)
    other = METRIC.run(replace(inputs, seed=1)).examples
    assert not other.query("kind == 'random'").equals(found.examples.query("kind == 'random'"))
    pd.testing.assert_frame_equal(other.query("kind == 'top'"), found.examples.query("kind == 'top'"))


def test_every_activation_is_drawn_equally_often(inputs):
    """Over 300 seeds each of the n activations of a latent is among the 4 drawn with probability 4/n (5 SE)."""
    fires, _ = activations(inputs)
    latent, pairs = max(fires.items(), key=lambda item: len(item[1]))
    drawn = pd.concat(rows_of(METRIC.run(replace(inputs, seed=seed)), "random", latent)["row"] for seed in range(300))
    share = 4 / len(pairs)
    counts = drawn.value_counts().reindex([row for _, row in pairs], fill_value=0)
    assert len(pairs) > 10 and np.abs(counts / 300 - share).max() < 5 * np.sqrt(share * (1 - share) / 300)


def test_the_tokens_around_are_those_of_the_context(inputs, found):
    held_out = inputs.evaluation_set
    _, place = activations(inputs)
    ids = held_out.ids(0, held_out.n_contexts).numpy()
    for row in found.examples.to_dict("records"):
        context, position = place[row["row"]]
        tokens = [int(token) for token in row["tokens"].split()]
        assert (row["position"], tokens[row["at"]]) == (position, ids[context, position])
        start, stop = max(0, position - 2), min(int(held_out.length[context]), position + 2)
        assert tokens == list(ids[context, start:stop]) and row["at"] == position - start


def test_blocks_change_nothing(inputs, found, monkeypatch):
    monkeypatch.setattr(examples, "_BLOCK_ROWS", 7)
    pd.testing.assert_frame_equal(METRIC.run(inputs).examples, found.examples)


def test_latents_that_never_fire_have_none(evaluation_set, inputs, found, tmp_path):
    import torch

    assert value_of(found, "exemplified")["value"] == len(activations(inputs)[0]) / inputs.codes.n
    silent = METRIC.run(make_inputs(constant_autoencoder(torch.zeros(16)), evaluation_set, tmp_path / "c"))
    assert silent.examples.empty and value_of(silent, "exemplified")["value"] == 0.0


@pytest.mark.parametrize("parameters", [{"top": -1}, {"random": 2.5}, {"bottom": 3}])
def test_wrong_parameters_are_refused(inputs, parameters):
    with pytest.raises(EvaluationError, match="metric examples"):
        METRIC.run(replace(inputs, parameters=parameters))
