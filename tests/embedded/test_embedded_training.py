from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_pipeline.embedded import family, loop
from sae_pipeline.embedded.bpe import END_OF_TEXT, encode, train_bpe
from sae_pipeline.embedded.corpus import split_documents
from sae_pipeline.embedded.measure import held_out_loss, training_flops
from sae_pipeline.embedded.ngram import NGram
from sae_pipeline.embedded.plan import Plan, batch_at, first_positions
from sae_pipeline.embedded.train import Text, build, prepare
from sae_pipeline.store import PipelineError, read_json
from sae_pipeline.tokens import Document, stdlib_documents

TINY = Plan(
    steps=24,
    vocab_size=400,
    n_layers=1,
    d_model=16,
    n_heads=2,
    n_positions=32,
    short_context=16,
    batch_tokens=128,
    warmup_steps=4,
    polish_steps=6,
)
LLAMA = replace(TINY, architecture="llama")
STREAM = np.random.default_rng(0).integers(TINY.vocab_size, size=4000)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [document for document in stdlib_documents() if document.id.startswith(("json/", "email/mime", "wsgiref/"))]


@pytest.fixture(scope="module")
def text(documents: list[Document]) -> Text:
    return prepare(documents, TINY)


@pytest.fixture(scope="module", params=[TINY, LLAMA], ids=["gpt2", "llama"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: Text
) -> tuple[Plan, Path, dict[str, Any]]:
    torch.set_num_threads(1)
    out_dir = tmp_path_factory.mktemp("models") / "tiny"
    card = build(text, request.param, out_dir, max_held_out_contexts=20)
    assert card is not None
    return request.param, out_dir, card


def test_a_run_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, text: Text, made: tuple[Plan, Path, dict[str, Any]]
) -> None:
    plan, out_dir, card = made
    again_dir = tmp_path / "tiny"
    # Once within each part of the run: before and after the contexts grow, and in the polish.
    for step in (7, 21, 26):
        assert build(text, plan, again_dir, stop_after=step) is None
    assert build(text, plan, again_dir, max_held_out_contexts=20) == card
    for name in ("model.safetensors", "tokenizer.json", "config.json", "card.json", "card.md"):
        assert (again_dir / name).read_bytes() == (out_dir / name).read_bytes()
    assert not (again_dir / "work").exists()


def test_a_killed_process_resumes_with_the_same_bits(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
import torch
from test_embedded_training import STREAM, TINY
from sae_pipeline.embedded.loop import train_model

class Killer:
    def update(self, done, total, unit, **info):
        if info["step"] == 11:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
train_model(TINY, STREAM, Path(sys.argv[1]), fingerprint="", checkpoint_every_s=0.0, progress=Killer())
"""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    cut_dir, whole_dir = tmp_path / "cut", tmp_path / "whole"
    cut_dir.mkdir()
    whole_dir.mkdir()
    killed = subprocess.run([sys.executable, "-c", script, str(cut_dir)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(cut_dir / loop.CHECKPOINT)["step"] == 10
    whole, cut = (loop.train_model(TINY, STREAM, folder, fingerprint="") for folder in (whole_dir, cut_dir))
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, cut.state_dict()[name]), name


def test_another_plan_or_corpus_does_not_continue_a_checkpoint(tmp_path: Path) -> None:
    assert loop.train_model(TINY, STREAM, tmp_path, fingerprint="a", stop_after=2) is None
    for plan, fingerprint in ((replace(TINY, lr=1e-3), "a"), (TINY, "b")):
        with pytest.raises(PipelineError, match="belongs to another"):
            loop.train_model(plan, STREAM, tmp_path, fingerprint=fingerprint)


def test_training_learns_what_bigrams_know(tmp_path: Path) -> None:
    """A text whose next token follows from the last: the loss falls from log V to nearly the noise's entropy."""
    generator = np.random.default_rng(0)
    stream = [0]
    follower = generator.permutation(50)
    for noise, other in zip(generator.random(20_000) < 0.1, generator.integers(50, size=20_000), strict=True):
        stream.append(int(other if noise else follower[stream[-1]]))
    ids = np.asarray(stream)
    plan = replace(TINY, steps=150, polish_steps=0, vocab_size=50, d_model=32, lr=1e-2)
    model = loop.train_model(plan, ids[:16_000], tmp_path, fingerprint="")
    found = held_out_loss(model, [ids[16_000:]], context=32, max_contexts=50)["nats_per_token"]
    unigram, bigram = (NGram(ids[:16_000], 50, order=order).nats_per_token([ids[16_000:]]) for order in (1, 2))
    assert unigram > 3.7
    assert bigram < found < bigram + 0.4


def test_files_and_card_are_what_others_expect(
    made: tuple[Plan, Path, dict[str, Any]], documents: list[Document]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan, out_dir, card = made
    model = AutoModelForCausalLM.from_pretrained(out_dir, dtype=torch.float32)
    assert model.config.model_type == plan.architecture == card["architecture"]
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) == card["size"]["parameters"]
    assert {value.dtype for value in load_file(out_dir / "model.safetensors").values()} == {torch.float16}
    tokenizer = AutoTokenizer.from_pretrained(out_dir)
    text = "def f(x):\n\treturn 'é' + x\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert json.loads((out_dir / "card.json").read_text()) == card
    names = {document.id for document in documents}
    assert set(card["held_out"]) | set(card["train"]) == names
    assert not set(card["held_out"]) & set(card["train"])
    assert len(card["held_out"]) >= 0.1 * len(names)
    assert f"{card['loss']['nats_per_token']:.3f}" in (out_dir / "card.md").read_text()


def test_the_tokenizer_never_sees_held_out_text() -> None:
    texts = ["alpha beta " * 200, "gamma delta " * 200]
    tokenizer = train_bpe(texts[:1], 300)
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert tokenizer.token_to_id("alpha") is not None and tokenizer.token_to_id("gamma") is None
    (ids,) = encode(tokenizer, ["any text: ünïcode\n"])
    assert ids[0] == 0 and tokenizer.decode(ids[1:].tolist()) == "any text: ünïcode\n"


def test_near_copies_are_held_out_together() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(map(str, generator.integers(1000, size=200))) for _ in range(20)]
    documents = [Document(f"{i}/{copy}", text + " x" * copy, "c") for i, text in enumerate(texts) for copy in range(2)]
    for seed in range(5):
        split = split_documents(documents, share=0.25, seed=seed)
        held_out = {document.id.split("/")[0] for document in split.held_out}
        assert len(split.held_out) == 10 and len(held_out) == 5
        assert not held_out & {document.id.split("/")[0] for document in split.train}


def test_batches_cover_the_text_once_per_pass_in_another_order_each_pass() -> None:
    stream = np.arange(2000)
    plan = replace(TINY, steps=10_000)
    per_pass = (stream.size - 17) // 16 // 8
    passes = []
    for first in (0, per_pass):
        starts = [batch_at(stream, plan, step)[:, 0] for step in range(first, first + per_pass)]
        seen = np.sort(np.concatenate(starts))
        assert (np.diff(seen) % 16 == 0).all() and (np.diff(seen) > 0).all()
        passes.append(np.concatenate(starts).tolist())
    assert passes[0] != passes[1]
    batch = batch_at(stream, plan, 3)
    assert batch.shape == (8, 17) and (np.diff(batch, axis=1) == 1).all()
    assert batch_at(stream, plan, plan.parts[1][0].start).shape == (4, 33)


@pytest.mark.parametrize("plan", [TINY, LLAMA], ids=["gpt2", "llama"])
def test_flops_are_those_of_the_matrix_products(plan: Plan) -> None:
    d, layers = plan.d_model, plan.n_layers
    mlp = 2 * 4 * d * d if plan.architecture == "gpt2" else 3 * d * round(d * 8 / 3 / 8) * 8
    products = layers * (4 * d * d + mlp) + plan.vocab_size * d
    attention = 2 * 2 * d * 32  # scores and their sum over values, multiply and add
    assert training_flops(loop.new_model(plan), 10, 32) == 10 * (6 * products + 3 * layers * attention)


def test_the_polish_has_its_own_rate_and_reaches_every_position() -> None:
    plan = replace(TINY, steps=100, warmup_steps=10, lr=1.0, polish_steps=20, polish_lr_share=0.5)
    assert plan.tokens == 120 * plan.batch_tokens
    assert plan.lr_at(99) == pytest.approx(plan.final_lr_share, abs=0.01)
    assert [plan.lr_at(step) for step in (100, 110, 118)] == pytest.approx([0.5, 0.25, 0.05])
    contexts = [plan.context(step) for step in range(120)]
    assert contexts == [16] * 80 + [32] * 20 + [16] * 12 + [32] * 8
    assert plan.mean_context == np.mean(contexts)
    # Short contexts of the polish begin anywhere that leaves them room, all others at 0.
    firsts = [first_positions(plan, step) for step in range(120)]
    assert all(len(first) == len(batch_at(np.arange(9999), plan, step)) for step, first in enumerate(firsts))
    assert {int(first.max()) for first in (*firsts[:100], *firsts[112:])} == {0}
    polished = set(np.concatenate(firsts[100:112]))
    assert len(polished) > 8 and {0, 16} <= polished <= set(range(17))


@pytest.mark.parametrize("starts", ["edges", "inside"])
def test_short_contexts_of_the_polish_reach_the_edges_or_seldom(starts):
    plan = replace(TINY, n_positions=64, steps=10, polish_steps=2000, polish_long_share=0.0, polish_starts=starts)
    firsts = np.concatenate([first_positions(plan, step) for step in range(10, 2010)])
    covered = np.bincount((firsts[:, None] + np.arange(16)).ravel(), minlength=64)
    at_edges, between = covered[[0, -1]], covered[16:48].mean()
    assert covered.size == 64 and covered.max() < 2.2 * between
    if starts == "edges":
        assert covered.min() > 0.9 * between
    else:
        assert at_edges.min() > 0 and at_edges.max() < 0.2 * between


def test_each_length_of_context_takes_up_the_text_where_it_left_it() -> None:
    plan = replace(TINY, steps=100, polish_steps=20)
    for context in (16, 32):
        steps = [step for step in range(120) if plan.context(step) == context]
        starts = np.concatenate([batch_at(np.arange(100_000), plan, step)[:, 0] for step in steps])
        assert len(set(starts.tolist())) == starts.size


def test_losses_are_those_at_the_given_positions() -> None:
    model = loop.new_model(TINY).eval()
    ids = torch.arange(17)[None]
    at_0, at_5 = (loop.token_losses(model, ids, torch.tensor([first])) for first in (0, 5))
    assert torch.equal(at_0, loop.token_losses(model, ids)) and not torch.allclose(at_0, at_5)
    moved = loop.new_model(TINY).eval()
    with torch.no_grad():
        moved.transformer.wpe.weight[:16] = model.transformer.wpe.weight[5:21]
    assert torch.equal(loop.token_losses(moved, ids), at_5)


def test_plans_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of n_positions"):
        replace(TINY, batch_tokens=100)
    with pytest.raises(ValueError, match="one batch needs"):
        batch_at(np.arange(40), TINY, 0)


def test_the_family_is_trained_piece_by_piece_and_summed_up_when_whole(
    tmp_path: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "FAMILY", {"one": TINY, "two": replace(TINY, d_model=32)})
    monkeypatch.setattr(family, "SHORTER", {"two": (1 / 4,)})
    monkeypatch.setattr(family, "stdlib_documents", lambda: documents)
    monkeypatch.setattr("sae_pipeline.embedded.train.SAMPLE_TOKENS", 3)
    out = ["--out", str(tmp_path)]
    assert family.main([*out, "--model", "one", "two"]) == 0
    assert not (tmp_path / "family.json").exists()
    kept = (tmp_path / "one" / "card.json").stat().st_mtime_ns
    assert family.main(out) == 0
    assert (tmp_path / "one" / "card.json").stat().st_mtime_ns == kept
    runs = read_json(tmp_path / "family.json")["runs"]
    assert [(run["model"], run["training_tokens"], run["shipped"]) for run in runs] == [
        ("two", 8 * 128, False),
        ("one", 30 * 128, True),
        ("two", 30 * 128, True),
    ]
    assert all(4 < run["nats_per_token"] < 6 for run in runs)
    assert (tmp_path / "family.md").read_text().count("| yes |") == 2
    assert not list(tmp_path.rglob("*work*"))
