"""What is selected of a row: by definition, compiled and in PyTorch alike."""

from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise

import pytest
import torch

from sae_pipeline.kernels import compiled, selection
from sae_pipeline.kernels.pairs import starts

SHARE = {torch.bfloat16: 1 - 2**-7, torch.float32: 1.0, torch.float64: 1.0}
SHAPES = [(1, 1), (7, 3), (31, 31), (33, 1), (64, 64), (100, 7), (1000, 1000), (1025, 2), (1024, 16), (4099, 40)]
needs_compiled = pytest.mark.skipif(
    compiled.library() is None, reason="the compiled selection is not there: no C compiler when this was installed"
)


@pytest.fixture(params=["PyTorch", pytest.param("compiled", marks=needs_compiled)])
def implementation(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(compiled, "library", lambda: None)
    return request.param


def awkward_rows(n, dtype):
    """Rows with ties, zeros of both signs, infinities, subnormal numbers, and too few that are positive."""
    g = torch.Generator().manual_seed(n)
    normal = torch.randn(40, n, generator=g)
    rows = [
        normal,
        normal - 2.5,
        normal.abs() * 1e30,
        normal * 1e-39,
        (normal * 2).round(),
        torch.where(normal > 1, normal, -torch.inf),
        torch.where(normal > 0.5, 0.0, -0.0) * normal,
        torch.where(normal > 1.5, torch.inf, normal),
        -normal.abs(),
        torch.full((3, n), 0.25),
        torch.full((3, n), -torch.inf),
        torch.arange(2 * n).view(2, n).float(),
        -torch.arange(2 * n).view(2, n).float(),
    ]
    return torch.cat(rows).to(dtype)


def required(scores_bn, k, slack_b, share):
    """The definition in `selection.candidates`, written out in float64."""
    exact = scores_bn.double()
    kth_b = exact.topk(k, dim=1).values[:, -1].clamp(min=0).to(slack_b.dtype)
    least_b = (share * kth_b - slack_b).double()
    return (exact >= least_b[:, None]) & (exact > -slack_b.double()[:, None])


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("slack", [0.0, 0.03])
def test_candidates_are_what_the_definition_says(n, k, dtype, slack, implementation):
    scores = awkward_rows(n, dtype)
    slack_b = slack * torch.linspace(0, 1, len(scores), dtype=torch.float64 if dtype == torch.float64 else None)
    counts_b, latents = selection.candidates(scores, k, slack_b, SHARE[dtype])
    found = torch.zeros(scores.shape, dtype=torch.bool)
    found[torch.arange(len(scores)).repeat_interleave(counts_b), latents] = True
    expected = required(scores, k, slack_b, SHARE[dtype])
    assert int(found.sum()) == len(latents), "an entry came twice"
    assert torch.equal(found.nonzero()[:, 1], latents), "not in ascending order"
    assert bool(found[expected].all())
    if implementation == "compiled" and dtype != torch.float64:
        assert torch.equal(found, expected)
    else:  # a bound in place of the k-th largest lets a few more in
        assert int(found.sum()) <= 1.5 * int(expected.sum()) + len(scores)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_are_the_first_of_a_stable_sort(n, k, dtype, implementation):
    rows, g = awkward_rows(n, dtype), torch.Generator().manual_seed(k)
    counts_b = torch.randint(0, n + 1, (len(rows),), generator=g)
    counts_b[:3] = torch.tensor([0, n, 1])
    values = torch.cat([row[:count] for row, count in zip(rows, counts_b, strict=True)])
    indptr = starts(counts_b)
    kept_b, places = selection.largest(indptr, values, k)
    expected = []
    for start, stop in pairwise(indptr):
        row = values[start:stop].tolist()
        best = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        expected.append([int(start) + place for place in sorted(best) if row[place] > 0])
    assert kept_b.tolist() == [len(row) for row in expected]
    assert places.tolist() == [place for row in expected for place in row]


def test_no_candidates_at_all_leave_nothing_to_keep(implementation):
    scores = torch.full((4, 64), -1.0)
    counts_b, latents = selection.candidates(scores, 3, torch.zeros(4), 1.0)
    assert counts_b.tolist() == [0] * 4 and len(latents) == 0
    kept_b, places = selection.largest(starts(counts_b), torch.empty(0), 3)
    assert kept_b.tolist() == [0] * 4 and len(places) == 0


@needs_compiled
def test_a_library_built_from_another_version_of_the_file_is_left_alone(monkeypatch):
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert compiled.library.__wrapped__() is None


def test_without_a_library_selection_is_in_pytorch(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    (tmp_path / f"_selection{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert compiled.library.__wrapped__() is None
