"""Finding, describing and loading a subject; what is said when something is wrong with its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_subjects import FAMILIES, TEXT, config_of, save_subject, save_tokenizer
from transformers import AutoTokenizer

from sae_pipeline.study import Site
from sae_pipeline.subjects import SubjectError, describe, load_subject, load_tokenizer

FolderOf = Callable[[str], Path]


@pytest.fixture
def gpt2(folder_of: FolderOf, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder_of("gpt2"), tmp_path / "gpt2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_agrees_with_the_loaded_model(family: str, folder_of: FolderOf) -> None:
    config = config_of(folder_of(family))
    card = describe(config, root=Path())
    subject = load_subject(config, root=Path())
    assert subject.card == card
    assert card.n_params == sum({p.data_ptr(): p.numel() for p in subject._model.parameters()}.values())
    assert (card.d_model, card.n_layers, card.vocab_size, card.max_positions) == (32, 3, 300, 48)
    assert card.norm == ("layernorm" if family.startswith("gpt") else "rmsnorm")
    embedding = subject._model.get_input_embeddings().weight
    assert card.tied_unembedding == (subject._model.lm_head.weight is embedding)


def test_describing_reads_no_weights(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: pytest.fail("opened the weights"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("loaded the weights"))
    assert describe(config_of(gpt2), root=Path()).architecture == "gpt2"


def test_the_fingerprint_follows_content_not_place(gpt2: Path, tmp_path: Path) -> None:
    here = describe(config_of(gpt2), root=Path())
    moved = shutil.copytree(gpt2, tmp_path / "elsewhere")
    raw = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(raw | {"_name_or_path": str(moved)}))
    assert describe(config_of("elsewhere"), root=tmp_path) == here

    weights = load_file(moved / "model.safetensors")
    weights["transformer.h.0.ln_1.bias"][0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    changed = describe(config_of(moved), root=Path())
    assert changed.fingerprint != here.fingerprint
    assert changed.tokenizer_fingerprint == here.tokenizer_fingerprint


def test_a_settings_change_is_another_subject(gpt2: Path) -> None:
    before = describe(config_of(gpt2), root=Path()).fingerprint
    raw = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps(raw | {"layer_norm_epsilon": 1e-3}))
    assert describe(config_of(gpt2), root=Path()).fingerprint != before


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def set_type(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "mamba"}))


def set_heads(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"n_head": "four"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "should have .* download it again"),
        (damage_header, "no readable safetensors header"),
        (lose_a_shard, "1 of 2 weight files are missing.*00002"),
        (drop_a_tensor, "1 weights are missing.*mlp.c_fc.weight"),
        (reshape_a_tensor, "wrong shape|cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no model_type"),
        (set_type, "'mamba' are not supported; known: .*gpt2.*llama"),
        (set_heads, "config.json is not usable"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer could be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
    ],
)
def test_damaged_folders_are_named(damage: Callable[[Path], None], message: str, gpt2: Path) -> None:
    damage(gpt2)
    with pytest.raises(SubjectError, match=message):
        load_subject(config_of(gpt2), root=Path())


def test_missing_subjects_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubjectError, match="there is no folder"):
        describe(config_of(tmp_path / "nowhere"), root=Path())
    with pytest.raises(SubjectError, match=r"'embedded/none' is not shipped"):
        describe(config_of("embedded/none"), root=Path())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SubjectError, match="neither a folder nor to be had from the Hugging Face hub"):
        describe(config_of("nobody/nothing"), root=tmp_path)
    with pytest.raises(SubjectError, match="SAE_TEST_NO_TOKEN is not set"):
        describe(config_of("nobody/nothing", credentials="env:SAE_TEST_NO_TOKEN"), root=tmp_path)
    with pytest.raises(SubjectError, match="write env:NAME"):
        describe(config_of("nobody/nothing", credentials="hunter2"), root=tmp_path)


def test_a_hub_snapshot_is_known_by_its_commit(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--somebody--tiny"
    shutil.copytree(folder_of("llama"), repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    card = describe(config_of("somebody/tiny"), root=tmp_path)
    assert card.fingerprint == commit
    assert card.n_params == describe(config_of(folder_of("llama")), root=Path()).n_params
    subject = load_subject(config_of("somebody/tiny"), root=tmp_path)
    assert subject.card == card


def test_impossible_devices_are_named(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SubjectError, match="no CUDA device"):
        load_subject(config_of(gpt2, device="cuda"), root=Path())
    with pytest.raises(SubjectError, match="'gpu' is unknown"):
        load_subject(config_of(gpt2), root=Path(), device="gpu")
    assert load_subject(config_of(gpt2, device="cuda"), root=Path(), device="cpu").device.type == "cpu"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_compute_dtype_is_the_one_asked_for(dtype: str, gpt2: Path) -> None:
    subject = load_subject(config_of(gpt2, dtype=dtype), root=Path())
    site = Site("tiny", 0, "resid_post")
    ids_cl = torch.arange(6).reshape(1, 6)
    value = subject.run(ids_cl, [site])[site]
    assert value.dtype == getattr(torch, dtype)
    assert torch.equal(subject.resume(site, value.float(), ids_cl), subject.logits(ids_cl))


def test_tokens_round_trip_and_point_into_the_text(gpt2: Path) -> None:
    tokenizer = load_tokenizer(config_of(gpt2), root=Path())
    text = TEXT[0] + "é <|endoftext|> end"
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)  # text that spells a special token stays text
    assert "".join(text[a:b] for a, b in spans if b > a).startswith(TEXT[0])
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 0)
    assert tokenizer.special_ids == {0}
    assert tokenizer.vocab_size == 290


def test_roles_fall_back_when_they_are_not_declared(gpt2: Path) -> None:
    def loaded(**roles: int | None) -> tuple[int | None, int | None, int, frozenset[int]]:
        raw = json.loads((gpt2 / "config.json").read_text())
        undeclared = {f"{role}_token_id": None for role in ("bos", "eos", "pad")}
        (gpt2 / "config.json").write_text(json.dumps(raw | undeclared | {f"{k}_token_id": v for k, v in roles.items()}))
        tokenizer = load_tokenizer(config_of(gpt2), root=Path())
        return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.special_ids

    assert loaded() == (None, None, 0, {0})
    assert loaded(bos=50256, eos=50256) == (None, None, 0, {0})  # another vocabulary's defaults
    assert loaded(eos=5) == (5, 5, 5, {0, 5})
    assert loaded(bos=4, eos=5) == (4, 5, 5, {0, 4, 5})
    assert loaded(bos=4, eos=5, pad=6) == (4, 5, 6, {0, 4, 5, 6})


def test_a_full_tokenizer_folder_is_read_through_transformers(gpt2: Path) -> None:
    bare = load_tokenizer(config_of(gpt2), root=Path())
    full = AutoTokenizer.from_pretrained(gpt2)
    full.add_special_tokens({"pad_token": "<|pad|>"})
    full.save_pretrained(gpt2)
    tokenizer = load_tokenizer(config_of(gpt2), root=Path())
    assert tokenizer.encode_batch(TEXT[:2]) == bare.encode_batch(TEXT[:2])
    assert tokenizer.pad_id == tokenizer.vocab_size - 1
    assert tokenizer.pad_id in tokenizer.special_ids
    assert tokenizer.fingerprint != bare.fingerprint


def test_a_subject_cannot_be_used_after_closing(tmp_path: Path) -> None:
    subject = load_subject(config_of(save_subject(tmp_path, "gpt2")), root=Path())
    save_tokenizer(tmp_path)
    subject.close()
    with pytest.raises(TypeError):
        subject.logits(torch.zeros(1, 2, dtype=torch.long))
