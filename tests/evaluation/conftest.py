import pytest
import torch
from evaluation_doubles import make_evaluation_set, tiny_subject


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def subject(tmp_path_factory):
    return tiny_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="session")
def evaluation_set(subject, tmp_path_factory):
    return make_evaluation_set(subject, tmp_path_factory.mktemp("sets") / "set")
