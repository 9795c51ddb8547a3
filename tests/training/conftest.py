import pytest
import torch
from training_doubles import Rows, make_spec, planted

from sae_pipeline.store import Draft
from sae_pipeline.training import Member


@pytest.fixture(scope="session")
def rows():
    return Rows(planted()[0])


@pytest.fixture
def member(tmp_path):
    """Makes a member with a draft under tmp_path/<folder>; opening the same folder again resumes it."""
    drafts = []

    def make(folder="a", **kwargs):
        spec = make_spec(**kwargs)
        draft = Draft.open(tmp_path / folder, stage="autoencoder", key=spec.key, identity="0" * 64, lineage={})
        drafts.append(draft)
        return Member(spec, draft)

    yield make
    for draft in drafts:
        draft.close()


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
