"""A context in two parts, the first run once, equals the context in one; in float64, but for norms in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_subjects import FAMILIES, LAYERS, VOCAB, D, config_of
from torch import Tensor

from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject, SubjectError, load_subject


@pytest.fixture(scope="module")
def exact_of(folder_of: Callable[[str], Path]) -> Callable[[str], Subject]:
    """Loaded tiny subject of a family in float64, not shared with other files."""
    loaded: dict[str, Subject] = {}

    def load(family: str) -> Subject:
        if family not in loaded:
            loaded[family] = load_subject(config_of(folder_of(family)), root=Path())
            loaded[family]._model.double()
        return loaded[family]

    return load


def values_at(subject: Subject, site: Site, ids_cl: Tensor) -> Tensor:
    """The activations, changed: other than what the subject would compute there by itself."""
    return subject.run(ids_cl, [site])[site] * 1.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_and_the_rest_equal_the_whole(family: str, exact_of: Callable[[str], Subject], ids_cl: Tensor) -> None:
    """At every kind of site; the sliding windows of 8 positions end within the prefix and after it."""
    subject = exact_of(family)
    for where in subject.card.wheres:
        site = Site("tiny", 1, where)
        value_cld = values_at(subject, site, ids_cl)
        whole_clv = subject.resume(site, value_cld, ids_cl)
        for cut in (1, 13):
            for c in range(2):
                prefix = subject.prefix(site, value_cld[c, :cut], ids_cl[c, :cut])
                rest = subject.resume(site, value_cld[c : c + 1, cut:], ids_cl[c : c + 1, cut:], after=prefix)
                torch.testing.assert_close(rest, whole_clv[c : c + 1, cut:], rtol=0, atol=2e-6)


@pytest.mark.parametrize("where", ["resid_post", "resid_mid"])
def test_many_continuations_of_one_prefix(where: str, exact_of: Callable[[str], Subject], ids_cl: Tensor) -> None:
    """Each context of a batch follows the same prefix, and a pass leaves the prefix as it was."""
    subject, site = exact_of("llama"), Site("tiny", 0, where)
    ids_cl = torch.cat([ids_cl[:1, :9].expand(4, -1), ids_cl[:, 9:]], dim=1)
    value_cld = values_at(subject, site, ids_cl)
    prefix = subject.prefix(site, value_cld[0, :9], ids_cl[0, :9])
    whole_clv = subject.resume(site, value_cld, ids_cl)
    for _ in range(2):
        rest_clv = subject.resume(site, value_cld[:, 9:], ids_cl[:, 9:], after=prefix)
        torch.testing.assert_close(rest_clv, whole_clv[:, 9:], rtol=0, atol=2e-6)
    assert sorted(prefix.keys_values) == list(range(1, LAYERS)), "blocks up to the site run for nothing"


def test_a_prefix_stops_at_the_last_keys(subject_of: Callable[..., Subject], ids_cl: Tensor) -> None:
    """The last block's MLP and the unembedding make nothing that later positions read; the model is left as it was."""
    subject, site = subject_of("gpt2"), Site("tiny", 1, "resid_post")
    value_cld, whole_clv = values_at(subject, site, ids_cl), subject.logits(ids_cl)
    ran: list[str] = []
    places = {"mlp": subject._blocks[LAYERS - 1].mlp, "unembedding": subject._model.lm_head}
    handles = [place.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, place in places.items()]
    prefix = subject.prefix(site, value_cld[0, :9], ids_cl[0, :9])
    assert LAYERS - 1 in prefix.keys_values and not ran
    assert torch.equal(subject.logits(ids_cl), whole_clv) and ran == list(places)
    for handle in handles:
        handle.remove()


def test_prefix_and_rest_must_fit_the_positions(subject_of: Callable[..., Subject]) -> None:
    subject, site = subject_of("gpt2"), Site("tiny", 1, "resid_post")
    ids_l = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(0))
    prefix = subject.prefix(site, torch.zeros(40, D), ids_l)
    with pytest.raises(SubjectError, match="contexts of 49 tokens exceed the subject's 48 positions"):
        subject.resume(site, torch.zeros(1, 9, D), ids_l[None, :9], after=prefix)
    assert subject.resume(site, torch.zeros(1, 8, D), ids_l[None, :8], after=prefix).shape == (1, 8, VOCAB)
