"""Every recipe in the training loop: it learns, it resumes, and what it saves is what it trained."""

from dataclasses import replace

import pytest
import torch
from training_doubles import Rows, make_spec

from sae_pipeline.autoencoders import RECIPES, Autoencoder
from sae_pipeline.dataset.planted import planted_rows
from sae_pipeline.measures.recovery import mean_correlation
from sae_pipeline.store import Draft, PipelineError
from sae_pipeline.training import Member, train

FEATURES, ACTIVE, D, N = 48, 3, 32, 96
OPTIONS = {"jumprelu": {"bandwidth": 0.3, "threshold": 0.1}}


@pytest.fixture(scope="module")
def world():
    return planted_rows(20_000, D, features=FEATURES, active=ACTIVE)


def settings(name, steps):
    """A run at the true sparsity."""
    needs = RECIPES[name].needs
    sparsity = {"k": ACTIVE if "k" in needs else None, "l1": None, "target_l0": None}
    if "l1" in needs:
        sparsity["l1" if "k" in needs else "target_l0"] = 0.003 if "k" in needs else float(ACTIVE)
    return {
        "recipe": name,
        "n": N,
        "tokens": 128 * steps,
        "lr": 5e-3,
        "ema": 0.95,
        "dead_after_tokens": 128 * 30,
        "prefixes": (24, 48, N) if "prefixes" in needs else None,
        "options": OPTIONS.get(name),
        "auxk_k": 16 if "k" in needs else None,
        **sparsity,
    }


FRESH = sorted(name for name, recipe in RECIPES.items() if recipe.trains is None)


@pytest.mark.parametrize("name", FRESH)
def test_learns_a_planted_dictionary_at_its_sparsity(member, world, name):
    held_out = planted_rows(4000, D, features=FEATURES, active=ACTIVE, draw=1).rows_md
    m = member(**settings(name, 900))
    outcome = train({"a": m}, Rows(world.rows_md), held_out_xd=held_out)["a"]
    assert outcome.status == "finished", outcome.error
    figures = outcome.figures
    autoencoder = Autoencoder.load(m.draft.path)
    found = mean_correlation(world.dictionary_fd, autoencoder.W_dec)
    # A penalty on size shrinks what it leaves on: at the true sparsity its error is far above the noise.
    unshrunk = "k" in RECIPES[name].needs or name == "gated"
    assert figures["nmse"] < (0.15 if unshrunk else 0.65)
    assert figures["mean_l0"] == pytest.approx(ACTIVE, rel=0.25)
    assert figures["train"]["l0"] == pytest.approx(ACTIVE, rel=0.15)
    assert found > (0.95 if name == "topk" else 0.8)
    assert float((autoencoder.W_dec.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("name", sorted(set(FRESH) - {"topk", "relu"}))
def test_stopped_and_resumed_ends_with_the_same_bits(member, rows, name):
    class StopAt:
        left = 23

        def __call__(self):
            self.left -= 1
            return self.left < 0

    whole, pieces = (member(folder, **settings(name, 40)) for folder in ("whole", "pieces"))
    assert train({"a": whole}, rows)["a"].status == "finished"
    assert train({"a": pieces}, rows, should_stop=StopAt())["a"].step == 23
    pieces.draft.close()
    again = member("pieces", **settings(name, 40))
    assert train({"a": again}, rows)["a"].status == "finished"
    first, second = (Autoencoder.load(m.draft.path).parameters.named() for m in (whole, again))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.fixture(scope="module")
def suppressed(world, tmp_path_factory):
    """A ReLU whose L1 holds its latents down."""
    spec = make_spec(**settings("relu", 600))
    path = tmp_path_factory.mktemp("parent")
    with Draft.open(path / "relu", stage="autoencoder", key="relu", identity="0" * 64, lineage={}) as draft:
        train({"a": Member(spec, draft)}, Rows(world.rows_md))
        return Autoencoder.load(draft.path)


def judged(autoencoder, x):
    codes = autoencoder.encode(x)
    x_hat = autoencoder.decode(codes)
    nmse = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    return codes.dense(N) > 0, nmse, float((x_hat.norm(dim=1) / x.norm(dim=1)).mean())


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(FRESH)))
def test_finetuning_takes_suppression_away(member, world, suppressed, name):
    """Where the encoder is frozen the same latents stay on; where it is not, more come on. (Wright and Sharkey 2024)"""
    m = member(recipe=name, n=N, k=None, parent="relu", tokens=128 * 300, lr=3e-3, auxk_k=None, dead_after_tokens=6400)
    outcome = train({"a": replace(m, parent=suppressed)}, Rows(world.rows_md))["a"]
    assert outcome.status == "finished", outcome.error
    x = planted_rows(3000, D, features=FEATURES, active=ACTIVE, draw=2).rows_md
    (before, nmse, ratio), (after, better, longer) = judged(suppressed, x), judged(Autoencoder.load(m.draft.path), x)
    assert better < 0.9 * nmse and ratio + 0.05 < longer < 1.02
    frozen = {"W_enc", "b_enc"}.isdisjoint(RECIPES[name].trains)
    if frozen and name != "finetune-rescale-shift":
        assert float((before == after).float().mean()) > 0.99999  # but for rounding at the threshold itself
    elif frozen:
        assert not (after & ~before).any()  # a shift can close a latent and never opens one
    else:
        assert after.sum() > 1.2 * before.sum()


@pytest.mark.parametrize(("change", "message"), [({"parent": None}, "give it"), ({"n": 50}, "has n = 96")])
def test_a_parent_that_does_not_fit_is_refused(member, rows, suppressed, change, message):
    m = member(recipe="finetune-scale", k=None, parent="relu", auxk_k=None, n=change.get("n", N))
    with pytest.raises(PipelineError, match=message):
        train({"a": replace(m, parent=change.get("parent", suppressed))}, rows)


def test_multi_topk_keeps_its_code_beyond_k_and_topk_does_not(member, world):
    """Gao et al. 2024 §5.3: of TopK more latents than in training spoil the code; Multi-TopK keeps it up to 4k.

    These rows have exactly k directions, so that more than k can help neither.
    """
    x = planted_rows(3000, D, features=FEATURES, active=ACTIVE, draw=3).rows_md
    curves = {}
    for name in ("topk", "multi-topk"):
        m = member(name, **settings(name, 900))
        train({"a": m}, Rows(world.rows_md))
        trained = Autoencoder.load(m.draft.path)
        curves[name] = [judged(trained.with_topk(k), x)[1] for k in (1, 2, ACTIVE, 2 * ACTIVE, 4 * ACTIVE)]
    topk, multi = curves["topk"], curves["multi-topk"]
    assert topk[:3] == sorted(topk[:3], reverse=True) and multi[:3] == sorted(multi[:3], reverse=True)
    assert topk[4] > 4 * topk[2] and multi[4] < 1.6 * multi[2]
