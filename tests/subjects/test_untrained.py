"""The untrained twin of a subject: other weights, always the same ones, without a weight file."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_subjects import FAMILIES, LAYERS, config_of

from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject, SubjectError, check_complete, describe, load_subject, load_tokenizer
from sae_pipeline.subjects import untrained as drawing

FolderOf = Callable[[str], Path]


@pytest.fixture
def bare_of(folder_of: FolderOf, tmp_path: Path) -> FolderOf:
    """A copy of a tiny subject's folder without its weights."""

    def build(family: str) -> Path:
        ignored = shutil.ignore_patterns("*.safetensors*")
        return Path(shutil.copytree(folder_of(family), tmp_path / family, ignore=ignored))

    return build


def twin_of(folder: Path | str, **changes: Any) -> Subject:
    return load_subject(config_of(folder, weights="untrained", **changes), root=Path())


def digest(subject: Subject) -> str:
    tensors = subject._model.state_dict()
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_has_the_architecture_and_tokenizer_but_not_the_weights(
    family: str, folder_of: FolderOf, bare_of: FolderOf
) -> None:
    trained, twin = load_subject(config_of(folder_of(family)), root=Path()), twin_of(bare_of(family))
    cards = [vars(subject.card) | {"fingerprint": ""} for subject in (trained, twin)]
    assert cards[0] == cards[1]
    assert trained.card.fingerprint != twin.card.fingerprint
    pairs = zip(trained._model.named_parameters(), twin._model.named_parameters(), strict=True)
    for (name, old), (other, new) in pairs:
        assert (name, old.shape, old.dtype) == (other, new.shape, new.dtype)
        assert not torch.equal(old, new), name
    assert not twin._model.training and not any(p.requires_grad for p in twin._model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_in_half_precision_is_the_one_in_float32_but_for_rounding(
    family: str, folder_of: FolderOf, bare_of: FolderOf
) -> None:
    folder = bare_of(family)
    exact, rounded = twin_of(folder), twin_of(folder, dtype="bfloat16")
    for name, values in exact._model.named_parameters():
        assert torch.equal(values.to(torch.bfloat16), rounded._model.get_parameter(name)), name
    trained = load_subject(config_of(folder_of(family), dtype="bfloat16"), root=Path())
    for name, values in trained._model.named_buffers():  # rotary frequencies and the like
        buffer = rounded._model.get_buffer(name)
        assert buffer.dtype == values.dtype and torch.equal(buffer, values), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_twin_is_the_same_in_every_process(family: str, bare_of: FolderOf) -> None:
    folder = bare_of(family)
    first = digest(twin_of(folder))
    torch.manual_seed(99)
    torch.randn(7)
    assert digest(twin_of(folder)) == first
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from test_untrained import digest, twin_of; print(digest(twin_of(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == first


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_callers_random_numbers_are_left_alone(dtype: str, bare_of: FolderOf) -> None:
    folder = bare_of("gpt2")
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    twin_of(folder, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]


def test_weights_are_drawn_as_the_architecture_begins_training(bare_of: FolderOf) -> None:
    """GPT-2: normal with standard deviation 0.02, less where a block writes into the residual stream."""
    model = twin_of(bare_of("gpt2"))._model
    weights = dict(model.named_parameters())
    assert weights["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    inner, outer = (weights[f"transformer.h.0.mlp.{name}.weight"] for name in ("c_fc", "c_proj"))
    assert inner.std().item() == pytest.approx(0.02, rel=0.05)
    assert outer.std().item() == pytest.approx(0.02 / (2 * LAYERS) ** 0.5, rel=0.05)
    assert (weights["transformer.h.1.ln_1.weight"] == 1).all() and not weights["transformer.h.1.ln_1.bias"].any()


def test_a_twin_runs_and_resumes(bare_of: FolderOf, ids_cl: torch.Tensor) -> None:
    twin, site = twin_of(bare_of("llama")), Site("tiny", 1, "resid_mid")
    value = twin.run(ids_cl, [site])[site]
    assert torch.equal(twin.resume(site, value, ids_cl), twin.logits(ids_cl))


def test_no_weight_file_is_asked_for(bare_of: FolderOf) -> None:
    folder = bare_of("gpt2")
    config = config_of(folder, weights="untrained")
    check_complete(config, describe(config, root=Path()).n_params, root=Path())
    assert load_tokenizer(config, root=Path()).vocab_size == 290
    with pytest.raises(SubjectError, match=r"holds no \*.safetensors"):
        describe(config_of(folder), root=Path())


def test_the_fingerprint_is_of_what_the_weights_follow_from(
    bare_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bare_of("gpt2")

    def found(place: Path = folder) -> str:
        return describe(config_of(place, weights="untrained"), root=Path()).fingerprint

    first = found()
    assert found(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == first
    for name in ("SEED", "VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(drawing, name, 2)
            assert found() != first
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"initializer_range": 0.5}))
    assert found() != first


def test_another_seed_draws_other_weights(bare_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare_of("gpt2")
    first = digest(twin_of(folder))
    monkeypatch.setattr(drawing, "SEED", 1)
    assert digest(twin_of(folder)) != first


def test_a_twin_from_the_hub_is_that_of_its_files_and_fetches_no_weights(
    bare_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bare_of("llama")
    snapshot = Path(shutil.copytree(folder, tmp_path / "snapshots" / "0123456789abcdef0123456789abcdef01234567"))
    asked: list[list[str]] = []

    def download(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    twin = load_subject(config_of("somebody/tiny", weights="untrained"), root=tmp_path)
    assert twin.card == twin_of(folder).card and digest(twin) == digest(twin_of(folder))
    assert asked and not any("safetensors" in pattern for patterns in asked for pattern in patterns)
