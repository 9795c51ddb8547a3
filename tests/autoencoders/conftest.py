"""Fixtures: the tiny subjects of tests/subjects, made once per session."""

import pytest
import torch

from sae_pipeline.subjects import load_subject, load_tokenizer
from tests.subjects.tiny_subjects import config_of, save_subject


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Loaded tiny subject of a family, with its tokenizer."""
    root, loaded = tmp_path_factory.mktemp("tiny"), {}

    def load(family, **changes):
        key = (family, *changes.values())
        if key not in loaded:
            folder = root / family
            if not folder.exists():
                save_subject(folder, family)
            config = config_of(folder, **changes)
            loaded[key] = load_subject(config, root=root), load_tokenizer(config, root=root)
        return loaded[key]

    return load


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
