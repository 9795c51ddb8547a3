"""The shipped models are what their cards say, and worth interpreting."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import sae_pipeline
from sae_pipeline.embedded.bpe import encode
from sae_pipeline.embedded.family import FAMILY, shorter_plans
from sae_pipeline.embedded.measure import held_out_loss
from sae_pipeline.store import read_json
from sae_pipeline.tokens.stdlib import stdlib_documents

MODELS = Path(sae_pipeline.__file__).parent / "embedded" / "models"
SIZES = ("code-small", "code-medium", "code-large")


@pytest.fixture(scope="module")
def cards():
    return {name: read_json(MODELS / name / "card.json") for name in FAMILY}


def test_the_family_is_whole_and_small():
    assert {path.parent.name for path in MODELS.glob("*/config.json")} == set(FAMILY)
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 20_000_000


def test_all_share_tokenizer_and_split(cards):
    tokenizers = {hashlib.sha256((MODELS / name / "tokenizer.json").read_bytes()).hexdigest() for name in FAMILY}
    assert len(tokenizers) == 1
    first = cards["code-small"]
    for name, card in cards.items():
        assert (card["train"], card["held_out"], card["data"]) == (first["train"], first["held_out"], first["data"])
        assert card["plan"] == FAMILY[name].to_json()
    assert len(first["held_out"]) >= 120
    assert len(first["held_out"]) >= 0.1 * (len(first["train"]) + len(first["held_out"]))


def test_larger_is_better_and_the_largest_clearly_beats_five_grams(cards):
    nats = [cards[name]["loss"]["nats_per_token"] for name in SIZES]
    parameters = [cards[name]["size"]["parameters"] for name in SIZES]
    assert parameters == sorted(parameters) and nats == sorted(nats, reverse=True)
    counts = cards["code-large"]["baselines"]
    assert counts["unigram"] > counts["bigram"] > counts["5-gram"] > nats[-1] + 0.3
    assert cards["code-llama"]["loss"]["nats_per_token"] < counts["5-gram"]


def test_every_position_is_trained(cards):
    """Over the last positions the loss is no worse than over the middle ones, but for noise."""
    nats = np.array(cards["code-large"]["loss"]["nats_by_position"])
    assert nats.size == 512
    assert nats[256:384].mean() < nats[64:128].mean() + 0.03
    assert nats[384:].mean() < nats[64:128].mean() + 0.03
    assert nats[496:].mean() < nats[432:496].mean() + 0.03, "the edge, which short contexts seldom reach"


def test_loss_against_compute_lists_every_run(cards):
    runs = read_json(MODELS / "family.json")["runs"]
    assert len(runs) == len(FAMILY) + len(shorter_plans())
    for run in (run for run in runs if run["shipped"]):
        card = cards[run["model"]]
        assert run["nats_per_token"] == card["loss"]["nats_per_token"]
        assert run["training_flops"] == card["size"]["training_flops"]
    one_size = [run["nats_per_token"] for run in runs if run["model"] == "code-small"]
    assert one_size == sorted(one_size, reverse=True), "a longer run of one size is better"


@pytest.mark.parametrize("name", list(FAMILY))
def test_the_weights_reach_the_loss_of_the_card(name, cards):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    held_out = set(cards[name]["held_out"])
    texts = [document.text for document in stdlib_documents() if document.id in held_out]
    if not texts:
        pytest.skip("this interpreter's library has none of the files that were held out")
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    ids = encode(Tokenizer.from_file(str(MODELS / name / "tokenizer.json")), texts)
    found = held_out_loss(model, ids, context=512, max_contexts=48)
    assert found["nats_per_token"] == pytest.approx(cards[name]["loss"]["nats_per_token"], abs=0.25)
