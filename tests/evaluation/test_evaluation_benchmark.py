"""What `benchmarks/evaluation.py` says beside a measured ratio: the products it counts are those that run."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evaluation as script
from sae_pipeline.study import Site

CONTEXT, LAYERS, CHANGES = 48, 4, 3


@pytest.fixture(scope="module")
def subject():
    """With attention written out in products, which are counted where a fused kernel is not."""
    script.logging.disable_progress_bar()
    made = script.random_subject(64, LAYERS, 1000, CONTEXT)
    made._model.config._attn_implementation = "eager"
    return made


@pytest.fixture(scope="module")
def case(subject):
    return script.ablation_case(subject, "random", CONTEXT, CHANGES)


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def masked(subject, layers, positions):
    """What written-out attention computes and masks: of a pass's own positions those after the one that reads."""
    return layers * 4 * subject.card.d_model * positions * (positions - 1) / 2


def test_the_products_of_each_pass_are_counted(subject):
    card, ids_l = subject.card, torch.zeros(CONTEXT, dtype=torch.long)
    whole = script.pass_flops(card, LAYERS, CONTEXT, 0, CONTEXT)
    assert flops(lambda: subject.logits(ids_l[None])) == whole + masked(subject, LAYERS, CONTEXT)

    site, value_ld, before = Site("random", 1, "resid_post"), torch.randn(CONTEXT, card.d_model), 20
    prefixes = []
    found = flops(lambda: prefixes.append(subject.prefix(site, value_ld[:before], ids_l[:before])))
    assert found == script.pass_flops(card, 1, before, 0, 0) + 6 * before * card.d_model**2 + masked(subject, 1, before)

    new = CONTEXT - before
    found = flops(lambda: subject.resume(site, value_ld[None, before:], ids_l[None, before:], after=prefixes[0]))
    assert found == script.pass_flops(card, 2, new, before, new) + masked(subject, 2, new)


def test_the_limit_is_the_ratio_of_the_products_that_run(case):
    """But for the position, which is drawn, and what attention masks."""
    counted = [flops(plain) / flops(ours) for plain, ours in map(case.repeat, range(4))]
    assert counted == pytest.approx([case.limit_by_flops] * 4, rel=0.15)


def test_a_row_has_the_limit_and_the_parts_of_our_time(case):
    row = script.measure(case, repetitions=1)
    assert row["largest_relative_difference"] < 1e-3
    assert row["limit_by_flops"] == round(case.limit_by_flops, 1)
    assert list(row["ours_parts_s"]) == ["prefix", "blocks_and_unembedding", "statistics"]
    assert 0 < sum(row["ours_parts_s"].values()) <= row["ours_s"] + 3e-4  # each is rounded to 0.1 ms
    assert "limit_by_flops" not in script.measure(script.progressive_case(16, 64, 2, 8), repetitions=1)
