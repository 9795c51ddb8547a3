"""Edits at every site against `resume`, and direct logits against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_subjects import FAMILIES, LAYERS, VOCAB, D
from torch import Tensor

from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject, SubjectError

Load = Callable[..., Subject]


def sites_of(subject: Subject) -> list[Site]:
    return [Site("tiny", layer, where) for layer in range(LAYERS) for where in subject.card.wheres]


def halved(value_cld: Tensor) -> Tensor:
    return 0.5 * value_cld + 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_resuming_with_the_edited_activation(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    clean = subject.logits(ids_cl)
    for site in sites_of(subject):
        value = subject.run(ids_cl, [site])[site]
        seen: list[Tensor] = []
        with subject.editing(site, lambda x, seen=seen: (seen.append(x.clone()), halved(x))[1]):
            edited = subject.logits(ids_cl)
            assert torch.equal(subject.run(ids_cl, [site])[site], halved(value)), site
        assert torch.equal(seen[0], value), site
        assert torch.equal(edited, subject.resume(site, halved(value), ids_cl)), site
        assert not torch.equal(edited, clean), site
        with subject.editing(site, lambda x: x):
            assert torch.equal(subject.logits(ids_cl), clean), site
    assert torch.equal(subject.logits(ids_cl), clean)


@pytest.mark.parametrize("where", ["resid_pre", "resid_mid", "resid_post", "mlp_out"])
def test_what_came_before_the_site_is_as_it_was(where: str, subject_of: Load, ids_cl: Tensor) -> None:
    """The middle is written into a tensor: that must not be the one that the block before handed on."""
    subject = subject_of("llama")
    clean = subject._model(input_ids=ids_cl, use_cache=False, output_hidden_states=True).hidden_states
    with subject.editing(Site("tiny", 1, where), halved):
        states = subject._model(input_ids=ids_cl, use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], clean[0]) and torch.equal(states[1], clean[1])
    assert not torch.equal(states[-1], clean[-1])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_edits_nest_in_order(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    wheres = ("resid_pre", "attn_out", "resid_mid", "mlp_out")
    pre, attention, middle, mlp = (Site("tiny", 1, where) for where in wheres)
    clean = subject.run(ids_cl, [pre])[pre]
    with (
        subject.editing(pre, halved),
        subject.editing(pre, torch.neg),
        subject.editing(attention, torch.zeros_like),
        subject.editing(middle, halved),
        subject.editing(mlp, torch.zeros_like),
    ):
        got = subject.run(ids_cl, [middle, mlp])
    assert torch.equal(got[middle], halved(-halved(clean))) and not got[mlp].any()


@pytest.mark.parametrize("where", ["resid_pre", "attn_out", "resid_mid"])
def test_what_an_edited_middle_hides_is_refused(where: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("llama")
    middle, site = Site("tiny", 1, "resid_mid"), Site("tiny", 1, where)
    value = subject.run(ids_cl, [site])[site]
    with subject.editing(middle, halved):
        with pytest.raises(SubjectError, match="cannot be reached"), subject.editing(site, halved):
            pass
        with pytest.raises(SubjectError, match="cannot be reached"):
            subject.resume(site, value, ids_cl)
        if where != "resid_mid":
            with pytest.raises(SubjectError, match="cannot be reached"):
                subject.run(ids_cl, [middle, site])
        subject.run(ids_cl, [middle, Site("tiny", 0, where)])
    with subject.editing(middle, halved), subject.editing(Site("tiny", 0, where), halved):
        pass
    assert torch.equal(subject.run(ids_cl, [site])[site], value)


@pytest.mark.parametrize("where", ["resid_pre", "resid_mid", "resid_post", "attn_z"])
def test_after_an_exception_the_model_is_as_before(where: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("gpt2")
    clean = subject.logits(ids_cl)

    def fail(value_cld: Tensor) -> Tensor:
        raise ZeroDivisionError("from the edit")

    for edit, error in ((fail, ZeroDivisionError), (lambda x: x[:, :-1], SubjectError)):
        with pytest.raises(error), subject.editing(Site("tiny", 1, where), edit):
            subject.logits(ids_cl)
        assert torch.equal(subject.logits(ids_cl), clean)
    with pytest.raises(KeyError), subject.editing(Site("tiny", 1, where), halved):
        raise KeyError
    assert torch.equal(subject.logits(ids_cl), clean)


def test_sites_that_do_not_exist_cannot_be_edited(subject_of: Load) -> None:
    with (
        pytest.raises(SubjectError, match="parallel"),
        subject_of("gpt_neox").editing(Site("tiny", 0, "resid_mid"), halved),
    ):
        pass
    with (
        pytest.raises(SubjectError, match="layers 0 to 2"),
        subject_of("llama").editing(Site("tiny", 3, "resid_mid"), halved),
    ):
        pass


def uncapped(subject: Subject, logits: Tensor) -> Tensor:
    cap = getattr(subject._model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh(logits.double() / cap)


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_logits_are_what_adding_the_direction_does(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    """h is replaced by another vector of the same centred length, so that the norm divides both by the same scale."""
    subject, last = subject_of(family), Site("tiny", LAYERS - 1, "resid_post")
    h = subject.run(ids_cl, [last])[last]
    mean = h.mean(-1, keepdim=True) if subject.card.norm == "layernorm" else torch.zeros_like(h[..., :1])
    length = (h - mean).norm(dim=-1, keepdim=True)
    other = torch.randn(h.shape, generator=torch.Generator().manual_seed(5))
    if subject.card.norm == "layernorm":
        other = other - other.mean(-1, keepdim=True)
    other = other / other.norm(dim=-1, keepdim=True) * length + mean + (1.0 if subject.card.norm == "layernorm" else 0)
    difference = uncapped(subject, subject.resume(last, other, ids_cl)) - uncapped(subject, subject.logits(ids_cl))
    got = subject.direct_logits((other - h).flatten(0, 1)).view(*ids_cl.shape, VOCAB)
    scale = length / D**0.5
    torch.testing.assert_close((got / scale).double(), difference.double(), rtol=2e-3, atol=2e-3)
    assert got.dtype == torch.float32 and float(difference.abs().mean()) > 0.05


def test_directions_of_another_width_are_refused(subject_of: Load) -> None:
    with pytest.raises(SubjectError, match=rf"\[directions, {D}\]"):
        subject_of("gpt2").direct_logits(torch.zeros(2, D + 1))
