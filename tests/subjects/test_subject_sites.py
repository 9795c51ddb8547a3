"""Sites against independent references: Hugging Face's own outputs and the blocks' submodules called by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_subjects import FAMILIES, HEADS, LAYERS, D
from torch import Tensor

from sae_pipeline.study import WHERE, Site
from sae_pipeline.subjects import Subject, SubjectError

Load = Callable[..., Subject]
REQUIRED = ("gpt2", "gpt_neox", "llama")


def sites_of(subject: Subject) -> list[Site]:
    return [Site("tiny", layer, where) for layer in range(subject.card.n_layers) for where in subject.card.wheres]


def hugging_face(subject: Subject, ids_cl: Tensor, **options: Any) -> Any:
    with torch.no_grad():
        return subject._model(input_ids=ids_cl, use_cache=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_equal_the_hidden_states_of_hugging_face(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    hidden = hugging_face(subject, ids_cl, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        values = subject.run(ids_cl, [Site("tiny", layer, "resid_pre"), Site("tiny", layer, "resid_post")])
        assert torch.equal(values[Site("tiny", layer, "resid_pre")], hidden[layer])
        after = values[Site("tiny", layer, "resid_post")]
        if layer < LAYERS - 1:  # the last of hidden_states lies behind the final norm
            assert torch.equal(after, hidden[layer + 1])
        else:
            body = subject._model.base_model
            norm = next(getattr(body, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(body, name))
            assert torch.equal(norm(after), hidden[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_block_add_up(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    for layer in range(LAYERS):
        values = subject.run(ids_cl, [Site("tiny", layer, where) for where in subject.card.wheres])
        part = {site.where: value.double() for site, value in values.items()}
        torch.testing.assert_close(
            part["resid_pre"] + part["attn_out"] + part["mlp_out"], part["resid_post"], rtol=1e-5, atol=1e-5
        )
        if "resid_mid" in part:
            torch.testing.assert_close(part["resid_pre"] + part["attn_out"], part["resid_mid"], rtol=1e-5, atol=1e-5)
        # Each part must carry weight, or a misplaced hook would pass the sums above.
        assert min(part[where].std() for where in ("attn_out", "mlp_out", "attn_z", "mlp_mid")) > 1e-3


def by_hand(family: str, block: Any, before: Tensor) -> dict[str, Tensor]:
    """MLP sites and widths from a block's submodules, written out per architecture from its published equations."""
    if family == "gpt2":
        normed = block.ln_2(before)
        mid = block.mlp.act(normed @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
        return {"mlp_mid": mid, "mlp_out": mid @ block.mlp.c_proj.weight + block.mlp.c_proj.bias}
    normed = block.post_attention_layernorm(before)
    if family == "gpt_neox":
        mid = block.mlp.act(block.mlp.dense_h_to_4h(normed))
        return {"mlp_mid": mid, "mlp_out": block.mlp.dense_4h_to_h(mid)}
    mid = torch.nn.functional.silu(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed)
    return {"mlp_mid": mid, "mlp_out": block.mlp.down_proj(mid)}


def heads_by_hand(subject: Subject, ids_cl: Tensor, layer: int) -> Tensor:
    """attn_z as Σ_s A[t,s] v[s] from Hugging Face's own attention weights and the value projection."""
    family, block = subject.card.architecture, subject._blocks[layer]
    weights = hugging_face(subject, ids_cl, output_attentions=True).attentions[layer]  # [c, heads, L, L]
    before = hugging_face(subject, ids_cl, output_hidden_states=True).hidden_states[layer]
    c, length = ids_cl.shape
    if family == "gpt2":
        value = block.attn.c_attn(block.ln_1(before)).split(D, dim=-1)[2].view(c, length, HEADS, -1)
    elif family == "gpt_neox":
        value = block.attention.query_key_value(block.input_layernorm(before)).view(c, length, HEADS, 3, -1)[..., 2, :]
    else:
        value = block.self_attn.v_proj(block.input_layernorm(before)).view(c, length, 2, -1)
        value = value.repeat_interleave(HEADS // 2, dim=2)
    return torch.einsum("chts,cshd->cthd", weights, value).reshape(c, length, -1)


@pytest.mark.parametrize("family", REQUIRED)
def test_attention_and_mlp_sites_equal_the_equations(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family, "eager")
    for layer in range(LAYERS):
        wheres = ("resid_pre", "attn_z", "attn_out", "mlp_mid", "mlp_out")
        got = {site.where: v for site, v in subject.run(ids_cl, [Site("tiny", layer, w) for w in wheres]).items()}
        block = subject._blocks[layer]
        before_mlp = got["resid_pre"] if family == "gpt_neox" else got["resid_pre"] + got["attn_out"]
        for where, expected in by_hand(family, block, before_mlp).items():
            torch.testing.assert_close(got[where], expected, rtol=1e-4, atol=1e-5)
        heads = heads_by_hand(subject, ids_cl, layer)
        torch.testing.assert_close(got["attn_z"], heads, rtol=1e-4, atol=1e-5)
        projection = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "llama": "self_attn.o_proj"}[family]
        torch.testing.assert_close(got["attn_out"], block.get_submodule(projection)(heads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_from_every_site_is_the_full_forward(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    clean = subject.logits(ids_cl)
    assert torch.equal(clean, hugging_face(subject, ids_cl).logits)
    for site in sites_of(subject):
        value = subject.run(ids_cl, [site])[site]
        assert torch.equal(subject.resume(site, value, ids_cl), clean), site
        assert not torch.equal(subject.resume(site, value + 1.5 * value.std(), ids_cl), clean), site
    assert torch.equal(subject.logits(ids_cl), clean)  # nothing stayed behind in the model


def entering_block(subject: Subject, layer: int, site: Site, value: Tensor, ids_cl: Tensor) -> Tensor:
    """What block `layer` receives when the forward pass resumes from `site`."""
    seen: list[Tensor] = []
    handle = subject._blocks[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    subject.resume(site, value, ids_cl)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", REQUIRED)
def test_what_is_put_in_reaches_the_skip_connection_too(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    pre, attention, mlp = (
        subject.run(ids_cl, [site])[site] for site in (Site("tiny", 1, w) for w in ("resid_pre", "attn_out", "mlp_out"))
    )
    value = torch.randn(*ids_cl.shape, D, generator=torch.Generator().manual_seed(1))
    block = subject._blocks[1]
    norm = block.ln_2 if family == "gpt2" else block.post_attention_layernorm
    expected = {"resid_post": value, "mlp_out": pre + attention + value}
    if family == "gpt_neox":
        expected["attn_out"] = pre + value + mlp
    else:
        expected["attn_out"] = pre + value + block.mlp(norm(pre + value))
        expected["resid_mid"] = value + block.mlp(norm(value))
    for where, entering in expected.items():
        got = entering_block(subject, 2, Site("tiny", 1, where), value, ids_cl)
        torch.testing.assert_close(got, entering, rtol=1e-4, atol=1e-5, msg=where)


def test_a_pass_stops_right_after_the_last_site(subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("gpt2")
    counts: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: counts.update([name]))
        for name, module in subject._model.named_modules()
        if name
    ]
    subject.run(ids_cl, [Site("tiny", 1, "resid_mid"), Site("tiny", 0, "mlp_out")])
    for handle in handles:
        handle.remove()
    assert counts["transformer.h.0"] == counts["transformer.h.1"] == counts["transformer.h.1.attn"] == 1
    assert not {name for name in counts if name.startswith(("transformer.h.1.mlp", "transformer.h.2", "lm_head"))}


def test_resuming_skips_the_blocks_before_the_site(subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("llama")
    site = Site("tiny", 1, "resid_mid")
    value = subject.run(ids_cl, [site])[site]
    ran: list[str] = []
    handles = [
        subject._blocks[layer]
        .get_submodule(name)
        .register_forward_hook(lambda *_, at=f"{layer}.{name}": ran.append(at))
        for layer in range(LAYERS)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    ]
    subject.resume(site, value, ids_cl)
    for handle in handles:
        handle.remove()
    assert ran == ["1.mlp.down_proj", "2.self_attn.o_proj", "2.mlp.down_proj"]


def test_one_pass_for_many_sites_equals_one_pass_each(subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("gpt2")
    together = subject.run(ids_cl, sites_of(subject))
    for site, value in together.items():
        assert torch.equal(value, subject.run(ids_cl, [site])[site])
        assert value.shape == (*ids_cl.shape, subject.width(site))


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_those_of_the_tensors(family: str, subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of(family)
    for site in sites_of(subject):
        assert subject.run(ids_cl, [site])[site].shape[-1] == subject.width(site)


def test_padding_on_the_right_changes_no_earlier_token(subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("llama")
    site = Site("tiny", 2, "resid_post")
    padded = ids_cl.clone()
    padded[:, 12:] = 0
    assert torch.equal(subject.run(ids_cl, [site])[site][:, :12], subject.run(padded, [site])[site][:, :12])


def test_sites_that_do_not_exist_are_refused_with_those_that_do(subject_of: Load, ids_cl: Tensor) -> None:
    with pytest.raises(SubjectError, match=r"no resid_mid .*parallel.*resid_pre, resid_post"):
        subject_of("gpt_neox").run(ids_cl, [Site("tiny", 0, "resid_mid")])
    assert subject_of("gpt_neox_sequential").card.wheres == WHERE
    with pytest.raises(SubjectError, match="layers 0 to 2"):
        subject_of("gpt2").check(Site("tiny", 3, "resid_pre"))


def test_wrong_inputs_are_refused_before_they_run(subject_of: Load, ids_cl: Tensor) -> None:
    subject, site = subject_of("gpt2"), Site("tiny", 1, "attn_out")
    with pytest.raises(SubjectError, match="vocabulary of 300"):
        subject.logits(ids_cl + 290)
    with pytest.raises(SubjectError, match="48 positions"):
        subject.logits(ids_cl.repeat(1, 3))
    with pytest.raises(SubjectError, match=r"\(4, 20, 32\)"):
        subject.resume(site, torch.zeros(4, 20, 31), ids_cl)
    with pytest.raises(SubjectError, match="at least one site"):
        subject.run(ids_cl, [])


def test_no_gradients_and_no_dropout(subject_of: Load, ids_cl: Tensor) -> None:
    subject = subject_of("gpt2")
    assert not any(p.requires_grad for p in subject._model.parameters())
    assert not any(m.training for m in subject._model.modules())
    assert torch.equal(subject.logits(ids_cl), subject.logits(ids_cl))
