import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig, Codes, config_of, initialise, settings_of
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import Damaged, Draft, NewerFormat, PipelineError, artefact

D, N = 16, 50


def spec(**kwargs):
    settings = {"key": "x", "recipe": "topk", "n": N, "k": 4, "l1": 0.1, "prefixes": None, "options": None}
    return SimpleNamespace(**(settings | {"seed": 0, "init": "tied"} | kwargs))


def make(recipe="topk", k=4, seed=3):
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    parameters = Parameters(
        torch.randn(N, D, generator=g), torch.randn(N, generator=g), W_dec, torch.randn(D, generator=g)
    )
    return Autoencoder(
        AutoencoderConfig(recipe, N, D, k), parameters, Normaliser("rms", D, 0.7), {"key": "x", "steps": 3}
    )


def rows(b=30, seed=9):
    return torch.randn(b, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("topk", N), ("relu", None)])
def test_encode_and_decode_equal_the_formula(recipe, k):
    ae, u = make(recipe, k), rows()
    pre = (u - ae.b_pre) @ ae.W_enc.T + ae.b_enc
    kept = pre if recipe == "relu" else torch.where(pre >= pre.topk(k, dim=1).values[:, -1:], pre, 0.0)
    z = kept.relu()
    codes = ae.encode(u)
    torch.testing.assert_close(codes.dense(N), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ae.decode(codes), z @ ae.W_dec + ae.b_pre, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ae.pre_activations(u), pre, rtol=1e-5, atol=1e-5)
    assert torch.equal(codes.l0_b, (z > 0).sum(1)) and len(codes) == len(u)
    assert torch.equal(torch.bincount(codes.fired, minlength=N), (z > 0).sum(0))


def test_fixed_width_codes_fall_and_fill_up_with_zero():
    ae, u = make(k=20), rows()
    ae.parameters.b_enc -= 5.0
    codes = ae.encode(u)
    assert codes.indices.shape == codes.values.shape == (30, 20) and codes.indices.dtype == torch.int64
    assert (
        bool((codes.values.diff(dim=1) <= 0).all()) and int(codes.l0_b.min()) < 20 and float(codes.values.min()) == 0.0
    )
    values, indices = ae.codes_top(u, 33)
    assert torch.equal(values[:, :20], codes.values)
    assert torch.equal(torch.where(values > 0, indices, -1)[:, :20], torch.where(codes.values > 0, codes.indices, -1))


def test_ragged_codes_of_silent_tokens_decode_to_the_offset():
    z = torch.zeros(3, N)
    z[1, 7] = 2.0
    codes = Codes.ragged(z)
    assert codes.indptr.tolist() == [0, 0, 1, 1] and codes.l0_b.tolist() == [0, 1, 0] and torch.equal(codes.dense(N), z)
    ae = make("relu", None)
    expected = ae.b_pre.expand(3, D).clone()
    expected[1] += 2.0 * ae.W_dec[7]
    torch.testing.assert_close(ae.decode(codes), expected)
    empty = ae.decode(Codes.ragged(torch.zeros(2, N)))
    assert torch.equal(empty, ae.b_pre.expand(2, D))


def test_initialisation_follows_the_paper():
    median = torch.linspace(-1, 1, D, dtype=torch.float64)
    ae = initialise(spec(n=400), Normaliser("none", D), median)
    assert torch.equal(ae.b_pre, median.float()) and not ae.b_enc.any()
    torch.testing.assert_close(ae.W_dec.norm(dim=1), torch.ones(400))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(ae.W_enc, ae.W_dec), torch.ones(400))
    unit = torch.nn.functional.normalize(rows(4000), dim=1)
    ae = Autoencoder(config_of(spec(n=400), D), ae, Normaliser("none", D))
    shift = (ae.decode(ae.encode(unit + ae.b_pre)) - ae.b_pre).norm(dim=1)
    assert float(shift.mean()) == pytest.approx(1.0, abs=0.05)
    relu = initialise(spec(recipe="relu", k=None, n=400), Normaliser("none", D), median)
    assert float(relu.W_enc.abs().max()) <= D**-0.5 and float(relu.W_enc.abs().max()) > 0.99 * D**-0.5
    loose = initialise(spec(init="independent", n=400), Normaliser("none", D), median)
    assert float(torch.nn.functional.cosine_similarity(loose.W_enc, loose.W_dec).abs().mean()) < 0.5


def test_seeds_decide_the_weights_and_are_not_those_of_data():
    first, again, other = (initialise(spec(seed=s), Normaliser("none", D), torch.zeros(D)) for s in (0, 0, 1))
    assert torch.equal(first.W_enc, again.W_enc) and not torch.equal(first.W_enc, other.W_enc)
    for seed in range(5):  # whoever draws data from a small seed must not meet the initial directions again
        drawn = torch.empty(N, D).uniform_(-(D**-0.5), D**-0.5, generator=torch.Generator().manual_seed(seed))
        overlap = torch.nn.functional.normalize(drawn, dim=1) @ first.W_dec.T
        assert float(overlap.max()) < 0.99


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_save_and_load_round_trip(tmp_path, recipe, k):
    ae = make(recipe, k)
    ae.save(tmp_path)
    back = Autoencoder.load(tmp_path)
    assert (back.config, back.normaliser, back.provenance) == (ae.config, ae.normaliser, ae.provenance)
    for name, tensor in ae.parameters.named().items():
        assert torch.equal(back.parameters.named()[name], tensor), name
    assert torch.equal(back.decode(back.encode(rows())), ae.decode(ae.encode(rows())))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autoencoder.safetensors", "config.json"]


def edit(folder, change):
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.update(version=2), NewerFormat, "upgrade"),
        (lambda c: c.update(format="other"), PipelineError, "not the configuration"),
        (lambda c: c["autoencoder"].update(n=N + 1), PipelineError, r"asks for .*\(51, 16\)"),
        (lambda c: c["autoencoder"].update(recipe="ghost"), PipelineError, "'ghost' is unknown"),
        (lambda c: c["autoencoder"].update(surprise=1), PipelineError, "missing or unknown.*surprise"),
        (lambda c: c.pop("normaliser"), PipelineError, "missing or unknown.*normaliser"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, change, error, message):
    make().save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(error, match=message):
        Autoencoder.load(tmp_path)


def test_wrong_weights_are_refused(tmp_path):
    with pytest.raises(PipelineError, match="no autoencoder here"):
        Autoencoder.load(tmp_path)
    make().save(tmp_path)
    path = tmp_path / "autoencoder.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"extra": torch.zeros(1)}, path)
    with pytest.raises(PipelineError, match="extra"):
        Autoencoder.load(tmp_path)
    save_file(tensors | {"W_enc": tensors["W_enc"].double()}, path)
    with pytest.raises(PipelineError, match="W_enc must be float32"):
        Autoencoder.load(tmp_path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(PipelineError, match="cannot be read"):
        Autoencoder.load(tmp_path)


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "config.json"])
def test_a_published_file_is_compared_with_what_was_published(tmp_path, monkeypatch, name):
    monkeypatch.setattr(artefact, "EAGER_BYTES", 0)  # as if it were large: opening the artefact hashes nothing
    with Draft.open(tmp_path / "a", stage="autoencoders", key="x", identity="0" * 64, lineage={}) as draft:
        for file, parts in make().to_files().items():
            draft.write_bytes(file, *parts)
        draft.publish({})
    assert Autoencoder.load(tmp_path / "a").config.n == N
    changed = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(changed[:-9] + bytes([changed[-9] ^ 1]) + changed[-8:])
    with pytest.raises(Damaged, match=name):
        Autoencoder.load(tmp_path / "a")


def test_settings_that_a_recipe_cannot_be_trained_with_are_refused():
    with pytest.raises(PipelineError, match="between 1 and n = 50"):
        settings_of(spec(k=51), D)
    with pytest.raises(PipelineError, match="'matryoshka' needs a value for prefixes"):
        settings_of(spec(recipe="matryoshka"), D)
    for prefixes in ((10, 20), (20, 10, N), (0, N)):
        with pytest.raises(PipelineError, match="must rise and end with n = 50"):
            settings_of(spec(recipe="matryoshka", prefixes=prefixes), D)
