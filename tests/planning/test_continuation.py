"""Which record the tokens of a study get, given what it used before."""

from dataclasses import replace
from pathlib import Path

import pytest

from sae_pipeline.planning.continuation import InUse, Version, continued
from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.lineage import Lineage
from sae_pipeline.store import Damaged, NotPublished, PipelineError
from sae_pipeline.study import Site, identity_of, load_study

CHECKOUT = Path(__file__).parents[2]
SITE = Site("code", 2, "resid_post")
WORDS = "corpora=[{name: words, source: words}]"
FILES = {"a.txt": "aa", "b.txt": "bb"}


def study_of(*overrides, corpora=WORDS):
    return load_study(CHECKOUT / "studies" / "demo.yaml", [corpora, *overrides])


def facts_of(**files):
    """Facts of made-up corpora of local files."""
    return Facts(
        subject="s",
        tokenizer="t",
        norm="layernorm",
        n_layers=4,
        d_model=128,
        vocab_size=4096,
        n_params=1_350_400,
        max_positions=256,
        widths={SITE: 128},
        sites={"code.3of5.resid_post": SITE},
        corpora={name: {"kind": "files", "sha256": identity_of(own)} for name, own in files.items()},
        split_list={},
        files=files,
    )


def version(lineage):
    """What is published once a study's tokens are made."""
    node = lineage["tokens"]
    return Version(node.identity, node.record, lineage.facts.files)


def in_use(*versions, lost=None):
    return InUse(versions[0].identity[:12], versions, lost)


@pytest.fixture
def first():
    return version(Lineage(study_of(), facts_of(words=FILES)))


def tokens(study, facts, used=None):
    return Lineage(study, facts, used)["tokens"]


MORE = FILES | {"0.txt": "00"}


@pytest.mark.parametrize(
    ("overrides", "files", "goes_on"),
    [
        ((), MORE, True),
        (("tokens.train=3M",), FILES, True),
        (("tokens.train=3M",), MORE, True),
        (("tokens.train=1M",), MORE, False),
        (("tokens.held_out=100k",), MORE, False),
        (("tokens.context=32",), MORE, False),
        (("seed=1",), MORE, False),
        (("corpora.0.weight=2",), MORE, False),
        (("corpora.0.field=body",), MORE, False),
        ((), FILES | {"a.txt": "changed"}, False),
        ((), {"a.txt": "aa", "c.txt": "bb"}, False),
        ((), {"a.txt": "aa"}, False),
    ],
)
def test_what_goes_on_and_what_begins_afresh(first, overrides, files, goes_on):
    study, facts = study_of(*overrides), facts_of(words=files)
    fresh, node = tokens(study, facts), tokens(study, facts, in_use(first))
    if goes_on:
        assert node.record == fresh.record | {"continues": first.identity}
        assert node.identity == identity_of(node.record) != fresh.identity
    else:
        assert node == fresh and "continues" not in node.record


def test_a_card_that_holds_out_others_begins_afresh():
    then, now = (replace(facts_of(words=FILES), split_list={"words": [name]}) for name in ("a.txt", "b.txt"))
    used = in_use(version(Lineage(study_of(), then)))
    assert "continues" in tokens(study_of(), replace(then, **_content(words=MORE)), used).record
    assert "continues" not in tokens(study_of(), replace(now, **_content(words=MORE)), used).record


def _content(**files):
    facts = facts_of(**files)
    return {"corpora": facts.corpora, "files": facts.files}


def test_publishing_changes_nothing_that_is_planned(first):
    facts = facts_of(words=MORE)
    second = version(Lineage(study_of(), facts, in_use(first)))
    assert tokens(study_of(), facts, in_use(second, first)).identity == second.identity
    assert tokens(study_of(), facts, in_use(second)).identity == second.identity  # what it continued may be gone


def test_the_newest_version_that_fits_is_the_one(first):
    second = version(Lineage(study_of(), facts_of(words=MORE), in_use(first)))
    third = version(Lineage(study_of(), facts_of(words=MORE | {"c": "cc"}), in_use(second, first)))
    used = in_use(third, second, first)
    assert tokens(study_of(), facts_of(words=MORE), used).identity == second.identity
    assert tokens(study_of(), facts_of(words=FILES), used).identity == first.identity
    assert tokens(study_of(), facts_of(words=MORE | {"d": "dd"}), used).record["continues"] == second.identity
    assert tokens(study_of(), facts_of(words=FILES | {"d": "dd"}), used).record["continues"] == first.identity
    assert "continues" not in tokens(study_of(), facts_of(words={"d": "dd"}), used).record


def test_a_corpus_may_be_appended_and_not_taken_out_or_put_in_front(first):
    two = "corpora=[{name: words, source: words}, {name: web, source: web}]"
    swapped = "corpora=[{name: web, source: web}, {name: words, source: words}]"
    facts = facts_of(words=FILES, web={"x.txt": "xx"})
    both = Lineage(study_of(corpora=two), facts, in_use(first))
    assert both["tokens"].record["continues"] == first.identity
    assert "continues" not in tokens(study_of(corpora=swapped), facts, in_use(first)).record
    assert tokens(study_of(), facts_of(words=FILES), in_use(version(both), first)).identity == first.identity
    assert "continues" not in tokens(study_of(), facts_of(words=FILES), in_use(version(both))).record


def test_only_local_files_grow(first):
    """Other text is the same or another: there is no telling what of it was there before."""
    study = study_of(corpora="corpora=[{name: stdlib, source: stdlib}]")
    then, now = (
        replace(facts_of(), corpora={"stdlib": {"kind": "stdlib", "documents": n, "sha256": str(n)}}) for n in (1, 2)
    )
    used = in_use(version(Lineage(study, then)))
    assert "continues" not in tokens(study, now, used).record
    assert (
        "continues" in tokens(study_of("tokens.train=3M", corpora=WORDS), facts_of(words=FILES), in_use(first)).record
    )
    unlisted = in_use(replace(first, files={}))  # made before files were listed
    assert "continues" not in tokens(study_of(), facts_of(words=MORE), unlisted).record


def test_a_version_that_cannot_be_opened(first):
    facts = facts_of(words=MORE)
    second = version(Lineage(study_of(), facts, in_use(first)))
    gone, damaged = NotPublished(Path("x")), Damaged(Path("x"), "is torn")
    for lost in (gone, damaged):
        used = InUse(second.identity[:12], (first,), lost)
        assert tokens(study_of(), facts, used).identity == second.identity
    other = facts_of(words=MORE | {"c": "cc"})
    used = InUse(second.identity[:12], (first,), gone)
    assert "continues" not in tokens(study_of(), other, used).record
    with pytest.raises(PipelineError, match=r"x: is torn.*nothing can go on from them"):
        tokens(study_of(), other, replace(used, lost=damaged))


def test_records_of_another_make_are_left_alone(first):
    record = {"stage": "tokens", "version": 1, "config": {"tokens": {}}, "inputs": {}}
    for other in ({}, {"stage": "tokens", "version": 0}):
        assert continued(record, {}, in_use(replace(first, record=other))) == record
