from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from evaluation_doubles import D, autoencoder, make_inputs, value_of

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import METRICS, EvaluationError
from sae_pipeline.evaluation import compare_latents as compare
from sae_pipeline.kernels import Parameters
from sae_pipeline.measures import directions

METRIC = METRICS["stability"]
WIDE = 64


def made_of(W_enc, W_dec):
    n, d = W_dec.shape
    parameters = Parameters(W_enc.clone(), torch.zeros(n), W_dec.clone(), torch.zeros(d))
    return Autoencoder(AutoencoderConfig("topk", n, d, 4), parameters, Normaliser("paper", d))


def draw(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def planted_pair(n=40, came_back=24, encoder_too=16, d=WIDE):
    """In another order and with a little noise `came_back` of n latents are there again, `encoder_too` of them by
    their encoder, too. In so many dimensions no other two come near."""
    a = made_of(draw(n, d, 0), draw(n, d, 1))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    W_dec, W_enc = draw(n, d, 3), draw(n, d, 4)
    W_dec[order[:came_back]] = a.W_dec[:came_back] + 0.05 * draw(came_back, d, 5)
    W_enc[order[:encoder_too]] = 3 * a.W_enc[:encoder_too] + 0.05 * draw(encoder_too, d, 6)
    return a, made_of(W_enc, W_dec), order


def test_known_shares_are_found_whichever_way_they_are_matched():
    a, b, order = planted_pair()
    found = compare(a, b)
    for agreement, share in ((found.decoder, 24), (found.encoder, 16)):
        for of_n in (agreement.nearest_n, agreement.matched_n):
            assert (of_n[:share] == order[:share].numpy()).all()
        assert (agreement.nearest_cosine_n > 0.7).sum() == (agreement.matched_cosine_n > 0.7).sum() == share
        assert agreement.mutual_n[:share].all()
    assert (np.flatnonzero(found.shared_n()) == np.arange(16)).all()
    assert found.shared_n(threshold=0.9999).sum() < 16


def test_the_same_latents_in_another_order_are_all_shared():
    a = made_of(draw(40, D, 0), draw(40, D, 1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found = compare(a, made_of(2 * a.W_enc[order], 0.5 * a.W_dec[order]))
    assert found.shared_n(threshold=0.999).all()
    assert found.decoder.matched_cosine_n == pytest.approx(np.ones(40))
    assert (order.numpy()[found.encoder.matched_n] == np.arange(40)).all()


def test_mutual_and_matched_figures_are_symmetric():
    a, b, _ = planted_pair()
    there, back = compare(a, b), compare(b, a)
    for side in ("decoder", "encoder"):
        one, other = getattr(there, side), getattr(back, side)
        assert one.matched_cosine_n.mean() == pytest.approx(other.matched_cosine_n.mean())
        assert (one.mutual_n & (one.nearest_cosine_n > 0.3)).sum() == (
            other.mutual_n & (other.nearest_cosine_n > 0.3)
        ).sum()
    assert there.shared_n().sum() == back.shared_n().sum()


def test_the_matching_is_the_best_of_all_permutations_and_the_nearest_bounds_it():
    a, b = made_of(draw(6, D, 0), draw(6, D, 1)), made_of(draw(6, D, 2), draw(6, D, 3))
    unit_a, unit_b = (torch.nn.functional.normalize(made.W_dec.double(), dim=1) for made in (a, b))
    cosine = (unit_a @ unit_b.T).numpy()
    best = max(np.mean([cosine[i, j] for i, j in enumerate(order)]) for order in permutations(range(6)))
    found = compare(a, b).decoder
    assert found.matched_cosine_n.mean() == pytest.approx(best)
    assert (found.nearest_cosine_n >= found.matched_cosine_n - 1e-6).all()
    assert found.nearest_cosine_n == pytest.approx(cosine.max(1), abs=1e-6)


@pytest.mark.parametrize("block_values", [1, 40 * 3, 1 << 22])
def test_blocks_do_not_matter(monkeypatch, block_values):
    a, b, _ = planted_pair()
    cosine = (
        torch.nn.functional.normalize(a.W_dec.double(), dim=1)
        @ torch.nn.functional.normalize(b.W_dec.double(), dim=1).T
    )
    monkeypatch.setattr(directions, "_BLOCK_VALUES", block_values)
    found = compare(a, b, matching=False).decoder
    assert found.nearest_cosine_n == pytest.approx(cosine.max(1).values.numpy(), abs=1e-6)
    assert (found.nearest_n == cosine.argmax(1).numpy()).all()
    assert (found.mutual_n == (cosine.argmax(0)[cosine.argmax(1)] == torch.arange(40)).numpy()).all()
    assert found.matched_n is None and found.matched_cosine_n is None


def test_a_smaller_counterpart_leaves_latents_unmatched():
    a = made_of(draw(10, D, 0), draw(10, D, 1))
    found = compare(a, made_of(a.W_enc[:4], a.W_dec[:4])).decoder
    assert (found.matched_n[:4] == np.arange(4)).all() and (found.matched_n[4:] == -1).all()
    assert (found.matched_cosine_n[4:] == 0).all()
    with pytest.raises(EvaluationError, match="of one site"):
        compare(a, made_of(draw(4, 8, 0), draw(4, 8, 1)))


def inputs_with(evaluation_set, path, siblings, **changes):
    made = autoencoder(n=48)
    return make_inputs(made, evaluation_set, path / "codes", siblings=siblings, **changes)


def test_figures_are_means_over_siblings_with_their_interval(evaluation_set, tmp_path):
    made = autoencoder(n=48)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    twin, other = made_of(made.W_enc[order], made.W_dec[order]), autoencoder(n=48, seed=7)
    result = METRIC.run(inputs_with(evaluation_set, tmp_path, {5: twin, 2: other}))
    away = compare(made, other)
    both = value_of(result, "shared", "both")
    shares = [1.0, away.shared_n().mean()]
    assert both["value"] == pytest.approx(np.mean(shares)) and both["n_units"] == 2
    # Student's t for two units is 12.706 at 97.5 %
    assert both["se"] == pytest.approx(abs(shares[0] - shares[1]) / 2)
    assert both["ci_hi"] - both["value"] == pytest.approx(12.706 * both["se"], rel=1e-4)
    near = value_of(result, "max_cosine", "decoder")["value"]
    assert near == pytest.approx((1 + away.decoder.nearest_cosine_n.mean()) / 2, rel=1e-6)
    assert value_of(result, "matched_cosine", "encoder")["value"] == pytest.approx(
        (1 + away.encoder.matched_cosine_n.mean()) / 2, rel=1e-6
    )
    stats = result.unit_stats.query("metric == 'shared' and variant == 'both'").sort_values("unit_id")
    assert stats["unit_id"].tolist() == [2, 5] and (stats["num"] / stats["den"]).tolist() == shares[::-1]
    assert result.curves["y"].sum() == 2 * 48 and result.facts["siblings"] == [2, 5]


def test_random_directions_are_the_floor(evaluation_set, tmp_path):
    result = METRIC.run(inputs_with(evaluation_set, tmp_path, {1: autoencoder(n=48, seed=7)}))
    floor = value_of(result, "max_cosine", "random")
    # both are random here
    assert floor["value"] == pytest.approx(value_of(result, "max_cosine", "decoder")["value"], abs=0.06)
    assert (floor["status"], floor["reason"], floor["better"]) == ("partial", "no interval: 1 sibling", "none")
    assert np.isnan(floor["ci_lo"])


def test_without_siblings_every_figure_says_why(evaluation_set, tmp_path):
    with_one = METRIC.run(inputs_with(evaluation_set, tmp_path / "1", {1: autoencoder(n=48, seed=7)})).metrics
    alone = METRIC.run(inputs_with(evaluation_set, tmp_path / "0", {})).metrics
    assert set(alone["status"]) == {"na"} and alone["reason"].str.contains("give its grid more seeds").all()
    assert alone[["metric", "variant"]].equals(with_one[["metric", "variant"]])


def test_too_many_latents_are_not_matched(evaluation_set, tmp_path):
    inputs = inputs_with(evaluation_set, tmp_path, {1: autoencoder(n=48, seed=7)})
    few = METRIC.run(replace(inputs, parameters={"matched_up_to": 47, "threshold": 0.5}))
    row = value_of(few, "matched_cosine", "decoder")
    assert row["status"] == "na" and row["reason"] == "n = 48 exceeds matched_up_to = 47"
    assert value_of(few, "shared", "decoder,matched")["status"] == "na"
    shared = value_of(few, "shared", "decoder,nearest")["value"]
    assert shared == (compare(inputs.autoencoder, inputs.siblings[1]).decoder.nearest_cosine_n > 0.5).mean() > 0
