"""Fixtures: the tiny subjects, made once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_subjects import VOCAB, config_of, save_subject

from sae_pipeline.subjects import Subject, load_subject


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny subject of a family, made on first use. Read-only: copy it to damage it."""
    root = tmp_path_factory.mktemp("subjects")

    def build(family: str) -> Path:
        folder = root / family
        return folder if folder.exists() else save_subject(folder, family)

    return build


@pytest.fixture(scope="session")
def subject_of(folder_of: Callable[[str], Path]) -> Callable[..., Subject]:
    """Loaded tiny subject of a family."""
    loaded: dict[tuple[str, str | None], Subject] = {}

    def load(family: str, attention: str | None = None) -> Subject:
        if (family, attention) not in loaded:
            changes = {"attention": attention} if attention else {}
            loaded[family, attention] = load_subject(config_of(folder_of(family), **changes), root=Path())
        return loaded[family, attention]

    return load


@pytest.fixture
def ids_cl() -> torch.Tensor:
    return torch.randint(0, VOCAB, (4, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
