"""Subjects that cannot be had, are not whole, or cannot run here: named before a token is made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipeline.front_door import UNREADABLE, World, assert_refused
from tests.subjects.tiny_subjects import save_subject

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
SUBJECT = "subject={alias: tiny, id: %s, device: cpu}"
Spoil = Callable[[World], list[str]]


def _set(*settings: str) -> Spoil:
    return lambda world: list(settings)


def _write(name: str, data: bytes | str | None) -> Spoil:
    """Replace a file of the subject; None deletes it."""

    def spoil(world: World) -> list[str]:
        if data is None:
            (world.model / name).unlink()
        else:
            (world.model / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return []

    return spoil


def _config(*settings: str, drop: tuple[str, ...] = (), **changes: Any) -> Spoil:
    """Change config.json."""

    def spoil(world: World) -> list[str]:
        raw = json.loads((world.model / CONFIG).read_text())
        raw = {key: value for key, value in (raw | changes).items() if key not in drop}
        (world.model / CONFIG).write_text(json.dumps(raw))
        return list(settings)

    return spoil


def _cut_short(world: World) -> list[str]:
    path = world.model / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    return []


def _other_format(world: World) -> list[str]:
    (world.model / WEIGHTS).rename(world.model / "pytorch_model.bin")
    return []


def _dangling(world: World) -> list[str]:
    """A hub's cache links to blobs; this one never came."""
    (world.model / WEIGHTS).unlink()
    (world.model / WEIGHTS).symlink_to(world.model / "blobs" / "0123")
    return []


def _shards(*there: str) -> Spoil:
    def spoil(world: World) -> list[str]:
        (world.model / WEIGHTS).rename(world.model / there[0])
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (world.model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
        return []

    return spoil


def _without_a_tensor(world: World) -> list[str]:
    weights = load_file(world.model / WEIGHTS)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, world.model / WEIGHTS, metadata={"format": "pt"})
    return []


def _larger_tokenizer(world: World) -> list[str]:
    raw = json.loads((world.model / TOKENIZER).read_text())
    raw["model"]["vocab"] |= {f"word{i}": 290 + i for i in range(20)}
    (world.model / TOKENIZER).write_text(json.dumps(raw))
    return []


def _family(family: str, *settings: str) -> Spoil:
    def spoil(world: World) -> list[str]:
        shutil.rmtree(world.model)
        save_subject(world.model, family)
        return list(settings)

    return spoil


# name: (what is spoilt; what the message names; what it says to do)
BAD: dict[str, tuple[Spoil, str, str]] = {
    "no such folder": (_set(SUBJECT % "/nowhere/gpt2"), "/nowhere/gpt2", "there is no folder"),
    "not shipped": (_set(SUBJECT % "embedded/prose"), "'embedded/prose' is not shipped", "shipped: code"),
    "a token that is not set": (
        _set("subject={alias: tiny, id: a/b, credentials: 'env:SAE_TEST_NO_TOKEN'}"),
        "environment variable SAE_TEST_NO_TOKEN",
        "is not set",
    ),
    "a token in the study": (
        _set("subject={alias: tiny, id: a/b, credentials: hunter2}"),
        "credentials",
        "write env:NAME",
    ),
    "no configuration": (_write(CONFIG, None), "holds no config.json", "the folder that save_pretrained wrote"),
    "half a configuration": (_write(CONFIG, '{"model_type": '), "config.json cannot be read", "download it again"),
    "an empty configuration": (_write(CONFIG, "{}"), "names no model_type", "transformers causal language model"),
    "an unsupported architecture": (
        _config(model_type="t5"),
        "model_type 't5' are not supported",
        "known: gemma, gemma2",
    ),
    "a senseless configuration": (_config(n_head="four"), "config.json is not usable", "n_head"),
    "an unknown depth": (
        _config("sites={tiny.1of3.resid_post: {}}", drop=("n_layer",)),
        "gives no number of layers",
        "write its layer as a number",
    ),
    "half the weights": (_cut_short, "model.safetensors has", "download it again"),
    "no weights at all": (_write(WEIGHTS, b""), "model.safetensors has no readable", "download it again"),
    "a pointer to weights": (
        _write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 500\n"),
        "model.safetensors has no readable safetensors header",
        "download it again",
    ),
    "a link to weights that never came": (_dangling, "model.safetensors has no readable", "download it again"),
    "weights in another format": (_other_format, "no *.safetensors weights", "save the model again with"),
    "one of two files": (
        _shards("model-00001-of-00002.safetensors"),
        "1 of 2 weight files are missing, the first is model-00002",
        "download it again",
    ),
    "half a list of files": (
        _write(f"{WEIGHTS}.index.json", '{"weight_'),
        "model.safetensors.index.json cannot be read",
        "download it again",
    ),
    "a missing tensor": (_without_a_tensor, "weight files hold", "download both again"),
    "weights of a smaller model": (_config(n_layer=4), "config.json asks for", "download both again"),
    "no tokenizer": (_write(TOKENIZER, None), "no tokenizer could be loaded", "tokenizer.save_pretrained"),
    "half a tokenizer": (_write(TOKENIZER, '{"version"'), "tokenizer.json cannot be read", "save it again"),
    "the tokenizer of another model": (
        _larger_tokenizer,
        "gives ids up to 309, its model knows 300",
        "another model's",
    ),
    "no first token": (
        _config(bos_token_id=None, eos_token_id=None),
        "tokens.bos is document_start, but the tokenizer has no BOS",
        "set tokens.bos: none",
    ),
    "attention that the model lacks": (_family("gemma2"), "subject.attention: sdpa", "try the other of sdpa and eager"),
    "a site that the model lacks": (
        _family("gpt_neox", "sites={tiny.1.resid_mid: {}}"),
        "a gpt_neox block has no resid_mid",
        "it has resid_pre, resid_post",
    ),
    "an unknown device": (_set("subject.device=gpu"), "device 'gpu' is unknown", "write auto, cpu, cuda or cuda:<"),
    "an unsupported device": (_set("subject.device=meta"), "device 'meta' is not supported", "write auto, cpu, cuda"),
    "a device that is not there": (_set("subject.device=cuda"), "no CUDA device", "write cpu or auto"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_subject_that_cannot_be(
    name: str, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spoil, names, says = BAD[name]
    assert_refused(world, capsys, world.run(*spoil(world)), names=names, says=says)


def test_a_second_device_where_there_is_one(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    argv = world.run("subject.device=cuda:1")
    assert_refused(world, capsys, argv, names="device 'cuda:1'", says="this machine has 1 CUDA device")


@pytest.mark.skipif(not os.path.exists(UNREADABLE), reason="needs /proc")
def test_weights_that_fail_when_they_are_read(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.model / WEIGHTS).unlink()
    (world.model / WEIGHTS).symlink_to(UNREADABLE)
    assert_refused(world, capsys, world.run(), names=f"{WEIGHTS} has no readable", says="download it again")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_weights_of_somebody_else(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.model / WEIGHTS).chmod(0)
    assert_refused(world, capsys, world.run(), names=f"{WEIGHTS} has no readable", says="download it again")


def test_a_name_of_the_hub_is_told_from_a_missing_folder(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """`a/b/c` cannot be a repository, so nobody is asked."""
    argv = world.run(SUBJECT % "models/of/mine")
    assert_refused(world, capsys, argv, names="'models/of/mine'", says="there is no folder")
