import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import (
    SITE,
    D,
    autoencoder,
    constant_autoencoder,
    make_evaluation_set,
    make_inputs,
    tiny_subject,
    value_of,
)

from sae_pipeline.evaluation import METRICS, EvaluationError, ablation, ablation_effects
from sae_pipeline.evaluation.ablation_effects import Effects, Position
from sae_pipeline.evaluation.sample import stratified

METRIC = METRICS["ablation"]
WINDOW = 5
SETTINGS = {"window": WINDOW, "tokens": 12}


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The tiny subject in float64, and its evaluation set made in float32."""
    root = tmp_path_factory.mktemp("exact")
    made = tiny_subject(root / "subject")
    held_out = make_evaluation_set(made, root / "set")
    made._model.double()
    return made, held_out


def sparsity(v_tv):
    """(‖v‖₁ / ‖v‖₂)² / (T·V) with the median of each position taken off, all in numpy."""
    v = v_tv - np.sort(v_tv, axis=1)[:, (v_tv.shape[1] - 1) // 2, None]
    return np.abs(v).sum() ** 2 / (v**2).sum() / v.size


def rows_of(held_out):
    context_r, position_r = np.nonzero(held_out.mask(0, held_out.n_contexts).numpy())
    return context_r, position_r


def sampled(inputs, window=WINDOW):
    """Rows of the sample, computed in another way: by walking over contexts."""
    held_out, frame = inputs.evaluation_set, []
    for row, (c, t) in enumerate(zip(*rows_of(held_out), strict=True)):
        length = np.flatnonzero(np.isfinite(held_out.clean_ce[c]))[-1] + 2
        if t + window <= length:
            frame.append(row)
    return stratified(np.array(frame), inputs.parameters["tokens"], inputs.seed)


def full_forward(subject, ids_l, t, x_d):
    """Logits of the whole context from the first token on, with a hook of our own that puts x_d at t."""

    def put(_module, _inputs, output):
        changed = output.clone()
        changed[0, t] = x_d
        return changed

    handle = subject._blocks[SITE.layer].register_forward_hook(put)
    with torch.no_grad():
        logits = subject._model(ids_l[None]).logits[0].numpy()
    handle.remove()
    return logits


def naive(subject, inputs, base="activation"):
    """Sparsity at T = 1 and WINDOW of every active latent of every sampled position, by one full forward for each."""
    held_out, made = inputs.evaluation_set, inputs.autoencoder
    context_r, position_r = rows_of(held_out)
    found = []
    for row in sampled(inputs):
        c, t = context_r[row], position_r[row]
        ids_l, x_d = held_out.ids(c, c + 1)[0], held_out.residuals(c, c + 1)[0, t]
        u_1d, scale = made.normaliser.normalise(x_d[None])
        z_n = made.encode(u_1d).dense(made.config.n)[0]
        start_d = x_d if base == "activation" else made.normaliser.denormalise(made.decode(made.encode(u_1d)), scale)[0]
        clean = full_forward(subject, ids_l, t, start_d)[t : t + WINDOW]
        for latent in torch.nonzero(z_n)[:, 0]:
            x_without_d = start_d - scale.norm[0] * z_n[latent] * made.W_dec[latent]
            v = full_forward(subject, ids_l, t, x_without_d)[t : t + WINDOW] - clean
            share = ((v - np.sort(v, 1)[:, 39:40]) ** 2).sum(1)
            found.append((held_out.document[c], sparsity(v[:1]), sparsity(v), share[0] / share.sum()))
    return pd.DataFrame(found, columns=["document", "first", "window", "share"])


@pytest.mark.parametrize("recipe", ["topk", "relu"])
@pytest.mark.parametrize("base", ablation.BASES)
def test_equals_a_full_forward_for_each_latent(exact, tmp_path, recipe, base):
    subject, held_out = exact
    made = autoencoder(recipe, k=4 if recipe == "topk" else None)
    settings = {**SETTINGS, "base": [base]}
    inputs = make_inputs(made, held_out, tmp_path / "codes", subject=subject, parameters=settings)
    result, expected = METRIC.run(inputs), naive(subject, inputs, base)
    end = "" if base == "activation" else f",base={base}"
    for metric, variant, column in (
        ("ablation_sparsity", "T=1", "first"),
        ("ablation_sparsity", f"T={WINDOW}", "window"),
        ("ablation_share_at_t", f"T={WINDOW}", "share"),
    ):
        row = value_of(result, metric, variant + end)
        assert row["value"] == pytest.approx(expected[column].mean(), rel=1e-6)
        assert row["n_units"] == expected["document"].nunique()
        stats = result.unit_stats.query("metric == @metric and variant == @variant + @end").set_index("unit_id")["num"]
        of_document = expected.groupby("document")[column].sum()
        assert stats.to_numpy() == pytest.approx(of_document[stats.index].to_numpy(), rel=1e-6)
    assert result.facts["ablations"] == len(expected) and result.facts["positions"] == 12


def test_float32_agrees_with_float64(subject, exact, tmp_path):
    """Small differences of large logits: the rounding of float32 must not carry the result."""
    values = []
    for model in (subject, exact[0]):
        inputs = make_inputs(autoencoder(), exact[1], tmp_path / str(len(values)), subject=model, parameters=SETTINGS)
        values.append(METRIC.run(inputs).metrics["value"].to_numpy())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_closed_form_behind_the_last_block(subject, exact, tmp_path, monkeypatch):
    """Nothing but the unembedding behind the site: the effect of z d is −s z d W_U at t, and 0 after it."""
    model, held_out = exact
    value_ld, ids_l = held_out.residuals(0, 1)[0, :6].double(), held_out.ids(0, 1)[0, :6]
    monkeypatch.setattr(model._model.transformer.ln_f, "forward", lambda x: x)
    change_md = torch.randn(3, D, generator=torch.Generator().manual_seed(0)).double()
    found = Position(model, replace(SITE, layer=2), value_ld, ids_l, 2).effects(value_ld[2], change_md)
    direct_mv = (change_md @ model._model.lm_head.weight.T).detach().numpy()
    assert found.first_m.numpy() == pytest.approx([sparsity(v[None]) for v in direct_mv], rel=1e-9)
    assert found.window_m.numpy() == pytest.approx(found.first_m.numpy() / 4, rel=1e-9)
    assert found.share_mt.numpy() == pytest.approx(np.array([[1.0, 0, 0, 0]] * 3), abs=1e-12)
    assert found.positions_m.numpy() == pytest.approx(np.full(3, 1 / 4))
    assert found.vocabulary_m.numpy() == pytest.approx(found.first_m.numpy(), rel=1e-9)


def gaussian(m=3, length=4, vocabulary=20_000):
    return torch.randn(m, length, vocabulary, generator=torch.Generator().manual_seed(1))


def columns(effects):
    return [effects.first_m, effects.window_m, effects.share_mt, effects.positions_m, effects.vocabulary_m]


def test_known_distributions():
    noise = Effects.of(gaussian(), torch.zeros(4, 20_000))
    for name in ("first_m", "window_m"):
        assert getattr(noise, name).numpy() == pytest.approx(np.full(3, 2 / math.pi), abs=0.005)
    one_hot = torch.zeros(1, 4, 1000)
    one_hot[0, 2, 17] = -3.0
    found = Effects.of(one_hot, torch.zeros(4, 1000))
    assert found.window_m.item() == pytest.approx(1 / 4000)
    assert (found.positions_m.item(), found.vocabulary_m.item()) == pytest.approx((1 / 4, 1 / 1000))
    assert math.isnan(found.first_m.item()), "no effect at t has no sparsity there"
    assert found.share_mt[0].tolist() == [0, 0, 1, 0]
    even = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0]).repeat(1, 2, 1)
    assert Effects.of(even, torch.zeros(2, 5)).positions_m.item() == pytest.approx(1.0)


def test_invariances(monkeypatch):
    """A constant at each position, a scale, the tile and the company of a change alter nothing."""
    logits, base = gaussian(), gaussian(1)[0].flip(1)
    expected = columns(Effects.of(logits.double(), base.double()))
    shift_t1 = torch.tensor([3.0, -40.0, 0.5, 7.0])[:, None].double()
    shifted = columns(Effects.of(logits.double() + shift_t1, base.double()))
    scaled = columns(Effects.of(5 * logits.double(), 5 * base.double()))
    turned = [column.flip(0) for column in columns(Effects.of(logits.flip(0), base))]
    tiled = []
    for tile in (1, 1 << 30):
        monkeypatch.setattr(ablation_effects, "_TILE", tile)
        tiled.append(columns(Effects.of(logits.clone(), base)))
    for other in (shifted, scaled, turned, *tiled):
        for found, wanted in zip(other, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def hard_for_a_sample(name):
    """Where a strided sample misleads: it holds only the smallest, only the largest, ties, or next to nothing."""
    v_mtv = gaussian(2, 3, 4096)
    if name == "sample smallest":
        v_mtv[..., ::16] -= 100
    if name == "sample largest":
        v_mtv[..., ::16] += 100
    if name == "zeros":
        v_mtv[..., 40:] = 0
    if name == "sorted":
        v_mtv = v_mtv.sort(2).values
    return v_mtv[..., : {"one": 1, "seven": 7, "eight": 8}.get(name, 4096)].contiguous()


@pytest.mark.parametrize(
    "name", ["noise", "sample smallest", "sample largest", "zeros", "sorted", "one", "seven", "eight"]
)
def test_median_is_that_of_torch(name):
    for v_mtv in (hard_for_a_sample(name), hard_for_a_sample(name).double()):
        assert torch.equal(ablation_effects._median(v_mtv), v_mtv.median(2, keepdim=True).values)


@pytest.mark.parametrize("logits", [1, 3 * WINDOW * 80])
def test_results_do_not_depend_on_the_batches(exact, tmp_path, monkeypatch, logits):
    inputs = make_inputs(autoencoder(), exact[1], tmp_path / "codes", subject=exact[0], parameters=SETTINGS)
    whole = METRIC.run(inputs)
    monkeypatch.setattr(ablation_effects, "LOGITS", logits)
    parts = METRIC.run(inputs)
    assert parts.metrics["value"].to_numpy() == pytest.approx(whole.metrics["value"].to_numpy(), rel=1e-9)
    assert parts.curves["y"].to_numpy() == pytest.approx(whole.curves["y"].to_numpy(), rel=1e-9)


def test_never_more_logits_than_allowed(exact, tmp_path, monkeypatch):
    asked = []
    resume = type(exact[0]).resume

    def watched(*given, **options):
        logits = resume(*given, **options)
        asked.append(logits.numel())
        return logits

    monkeypatch.setattr(type(exact[0]), "resume", watched)
    monkeypatch.setattr(ablation_effects, "LOGITS", 3 * WINDOW * 80)
    METRIC.run(make_inputs(autoencoder(), exact[1], tmp_path / "codes", subject=exact[0], parameters=SETTINGS))
    assert max(asked) == 3 * WINDOW * 80


def test_references_are_as_long_as_latents_and_depend_on_the_row_alone(exact, tmp_path):
    inputs = make_inputs(autoencoder(k=3), exact[1], tmp_path / "codes", subject=exact[0], parameters=SETTINGS)
    x_d = exact[1].rows(0, exact[1].n_contexts)[0][7]
    changes = ablation._Changes.of(inputs, 7, x_d)
    assert list(changes.names["of"]) == ["latents"] * 3 + ["channels"] * 3 + ["random"] * 3
    assert list(changes.names["third"][:3]) == ["top", "middle", "last"]
    norms = changes.change_md.norm(dim=1).view(3, 3)
    torch.testing.assert_close(norms[1:], norms[:1].expand(2, -1))
    assert bool((norms[0].diff() < 0).all())
    channel = changes.change_md[3:6]
    assert ((channel != 0).sum(1) == 1).all() and ((channel * x_d).sum(1) < 0).all()
    again = ablation._Changes.of(inputs, 7, x_d)
    assert torch.equal(again.change_md, changes.change_md)
    assert not torch.equal(ablation._Changes.of(replace(inputs, seed=1), 7, x_d).change_md, changes.change_md)


def test_thirds_and_curves_add_up(exact, tmp_path):
    inputs = make_inputs(autoencoder(k=6), exact[1], tmp_path / "codes", subject=exact[0], parameters=SETTINGS)
    result = METRIC.run(inputs)
    thirds = [value_of(result, "ablation_sparsity", f"T={WINDOW},{third}")["value"] for third in ablation.THIRDS]
    assert np.mean(thirds) == pytest.approx(value_of(result, "ablation_sparsity", f"T={WINDOW}")["value"])
    curves = {name: rows for name, rows in result.curves.groupby("curve")}
    assert curves["hist_latents"]["y"].sum() == result.facts["ablations"] == 12 * 6
    assert curves["hist_random"]["y"].sum() == curves["hist_channels"]["y"].sum() == 12 * 6
    shares = curves["share_by_offset"]["y"]
    assert shares.sum() == pytest.approx(1) and len(shares) == WINDOW
    assert shares.iloc[0] == pytest.approx(value_of(result, "ablation_share_at_t", f"T={WINDOW}")["value"])


def test_the_sample_is_of_all_documents_and_of_the_seed_alone():
    rows = np.arange(0, 3000, 3)
    found = stratified(rows, 50, seed=4)
    assert len(set(found)) == 50 and set(found) <= set(rows)
    assert (np.bincount(found // 600) == 10).all(), "each equal run is drawn from alike"
    assert (stratified(rows, 50, seed=4) == found).all() and (stratified(rows, 50, seed=5) != found).any()
    assert (stratified(rows, 2000, seed=4) == rows).all()


def test_a_window_that_fits_nowhere_and_a_coarse_dtype_say_so(subject, evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", subject=subject)
    result = METRIC.run(inputs)  # contexts of 12 positions, windows of 16
    assert set(result.metrics["status"]) == {"na"}
    assert set(result.metrics["reason"]) == {
        "no context has 16 positions from an eligible one on; lower the parameter window"
    }
    coarse = type(subject)(replace(subject.card, dtype="bfloat16"), subject._model, subject.device)
    found = METRIC.run(replace(inputs, subject=coarse, parameters=SETTINGS))
    assert set(found.metrics["status"]) == {"na"} and "float32" in found.metrics["reason"].iloc[0]
    with pytest.raises(EvaluationError, match="window takes a whole number"):
        METRIC.run(replace(inputs, parameters={"window": 0}))
    with pytest.raises(EvaluationError, match="runs the subject model"):
        METRIC.run(replace(inputs, subject=None))


def test_an_autoencoder_that_never_fires_has_no_effects(subject, evaluation_set, tmp_path):
    made = constant_autoencoder(torch.zeros(D))
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes", subject=subject, parameters=SETTINGS))
    assert set(result.metrics["status"]) == {"na"}
    assert set(result.metrics["reason"]) == {"no latent is active at the sampled positions"}


def test_one_position_is_the_first_of_many(exact, tmp_path):
    x_ld, ids_l = exact[1].residuals(0, 1)[0, :4], exact[1].ids(0, 1)[0, :4]
    change_md = torch.randn(2, D, generator=torch.Generator().manual_seed(0))
    both = [Position(exact[0], SITE, x_ld[:stop], ids_l[:stop], 1).effects(x_ld[1], change_md) for stop in (2, 4)]
    torch.testing.assert_close(both[0].window_m, both[1].first_m)
    settings = {"window": 1, "tokens": 6}
    inputs = make_inputs(autoencoder(), exact[1], tmp_path / "codes", subject=exact[0], parameters=settings)
    result = METRIC.run(inputs)
    assert set(result.metrics["metric"]) == {"ablation_sparsity"}
    assert all(variant.startswith("T=1") for variant in result.metrics["variant"])
