"""Fixtures: one tiny subject for the session, tokens in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from activation_doubles import MemoryTokens, make_tokens, tiny_subject

from sae_pipeline.subjects import Subject


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture
def tokens() -> MemoryTokens:
    return make_tokens()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
