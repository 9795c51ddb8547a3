"""The code of docs/notebooks.md, block after block, on the model of the demo study."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from sae_pipeline.activations import harvest
from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.planning.facts import resolve_sites
from sae_pipeline.store import Draft, Outputs
from sae_pipeline.study import Corpus, TokensConfig, expand, load_study
from sae_pipeline.subjects import describe, load_subject, load_tokenizer
from sae_pipeline.tokens import Tokens, build_tokens

CHECKOUT = Path(__file__).resolve().parents[2]


def blocks():
    return re.findall(r"^```python\n(.*?)^```$", (CHECKOUT / "docs" / "notebooks.md").read_text(), re.M | re.S)


def draw(config):
    g = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(config.n, config.d, generator=g), dim=1)
    parameters = Parameters(W_dec.clone(), torch.zeros(config.n), W_dec, torch.zeros(config.d))
    return Autoencoder(config, parameters, Normaliser("paper", config.d), {"key": "drawn"})


def harvest_some(study, card, folder):
    """Tokens of a small corpus and the activations made from them, published where the demo's would lie."""
    outputs, identities = Outputs(folder / "outputs"), ("1" * 64, "2" * 64)
    (site,) = resolve_sites(study, CHECKOUT).values()
    subject, tokenizer = (load(study.subject, root=CHECKOUT) for load in (load_subject, load_tokenizer))
    (folder / "words.txt").write_text("\n<|endoftext|>\n".join(draw_text(seed) for seed in range(8)))
    corpus = Corpus(name="words", source=str(folder / "words.txt"))
    with Draft.open(
        outputs.artefact_dir("tokens", "words", identities[0]),
        stage="tokens", key="words", identity=identities[0], lineage={},
    ) as draft:  # fmt: skip
        config = TokensConfig(context=64, train=4200, held_out=100)
        tokens = draft.publish(build_tokens(draft, config, [corpus], tokenizer, seed=0, root=folder))
    with Draft.open(
        outputs.artefact_dir("activations", str(site), identities[1]),
        stage="activations", key=str(site), identity=identities[1], lineage={"inputs": {"tokens": identities[0]}},
    ) as draft:  # fmt: skip
        harvest(subject, Tokens.open(tokens), {site: draft}, study.activations)
        activations = draft.publish({})
    return {"tokens": tokens, f"activations/{site}": activations}


def draw_text(seed):
    generator = random.Random(seed)
    return "\n".join(f"v{generator.randrange(10**6)} = f({generator.randrange(10**6)})" for _ in range(120))


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch):
    """A folder that looks like the checkout after the demo: its pointers name the autoencoders that it makes."""
    study = load_study(CHECKOUT / "studies" / "demo.yaml")
    card, pointers = describe(study.subject, root=CHECKOUT), {}
    for text, site in resolve_sites(study, CHECKOUT).items():
        for key, spec in expand(study, site, text, card.width(site)).items():
            pointers[f"autoencoder/{site}/{key}"] = f"artefacts/autoencoders/{spec.recipe}"
    for name, artefact in harvest_some(study, card, tmp_path).items():
        pointers[name] = artefact.path.relative_to(tmp_path / "outputs").as_posix()
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    (tmp_path / "outputs" / "demo" / "current.json").write_text(json.dumps(pointers))
    folder = tmp_path / "outputs" / "artefacts" / "autoencoders" / "topk"
    folder.mkdir(parents=True)
    draw(AutoencoderConfig("topk", 1024, card.d_model, 8)).save(folder)
    (tmp_path / "studies").symlink_to(CHECKOUT / "studies")
    monkeypatch.chdir(tmp_path)


def test_the_notebook_runs_as_it_stands(after_the_demo, capsys):
    names = {}
    for block in blocks():
        exec(compile(block, "docs/notebooks.md", "exec"), names)
    subject, sae, ids, site = (names[name] for name in ("subject", "sae", "ids", "site"))
    clean = subject.logits(ids)
    place = names["Site"].parse(site)
    rows, activations = names["rows"], names["activations"]
    assert rows.dtype == torch.float32 and rows.shape == (4096, subject.card.d_model) and len(activations) >= 4096
    assert 0 < names["position"] < 4000 and 0 < names["token_id"] < subject.card.vocab_size and names["document"]
    assert torch.equal(subject.resume(place, names["x_hat"][None], ids), names["spliced"])
    for name in ("spliced", "ablated", "steered", "clamped"):
        assert names[name].shape == clean.shape and not torch.equal(names[name], clean), name
    assert {int(l0) for l0 in names["codes"].l0_b} == {8} == {sae.config.k}
    assert names["wider"].encode(names["u"]).indices.shape[1] == 32
    assert names["batch"].encode(names["u"]).l0_b.float().mean() == 8
    assert Autoencoder.load(Path("wider")).provenance["swapped_from"]["provenance"] == {"key": "drawn"}
    assert names["effect"].shape == (2, subject.card.vocab_size)
    printed = capsys.readouterr().out
    assert "'def'" in printed and "  raises  " in printed and "  lowers  " in printed


def test_every_promise_of_the_page_has_its_code():
    code = "\n".join(blocks())
    for call in (
        "Autoencoder.load(", "sae.encode(", "sae.decode(", "sae.splice(", "sae.ablate(", "sae.steer(", "sae.with_topk(",
        "sae_pipeline.open_activations(", "activations.rows(", "activations.origin(",
        "sae.with_threshold(", "sae.with_mean_l0(", "inspect_prompt(", "subject.direct_logits(",
    ):  # fmt: skip
        assert call in code
