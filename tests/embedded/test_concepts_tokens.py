"""Tokens' labels and rows drawn from documents."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.embedded.bpe import train_bpe
from sae_pipeline.embedded.concepts import (
    CATALOGUE,
    TEST,
    TRAIN,
    Dropped,
    ProbeSet,
    Sampling,
    build_probe_set,
    by_card,
    concept_spans,
)
from sae_pipeline.embedded.concepts.agreement import Agreement
from sae_pipeline.embedded.concepts.labels import anchors, token_labels
from sae_pipeline.embedded.concepts.sampling import choose_contexts, draw_balanced
from sae_pipeline.store import PipelineError
from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects import SubjectTokenizer
from sae_pipeline.tokens import Document, stdlib_documents

NAMES = [concept.name for concept in CATALOGUE]
SAMPLING = Sampling(contexts_per_document=4, rows_per_document=8)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Some ninety modules of moderate size."""
    found = [document for document in stdlib_documents() if 3_000 < len(document.text) < 12_000]
    return random.Random(0).sample(found, 90)


@pytest.fixture(scope="module")
def tokenizer(documents: list[Document]) -> SubjectTokenizer:
    trained = train_bpe((document.text for document in documents[:30]), 800)
    return SubjectTokenizer(trained, {"bos": 0, "eos": 0, "pad": 0})


@pytest.fixture(scope="module")
def probe_set(documents: list[Document], tokenizer: SubjectTokenizer) -> ProbeSet:
    return build_probe_set(documents[:45], documents[45:], tokenizer, SAMPLING)


def naive_anchor(text: str, start: int, end: int) -> int:
    return next((at for at in range(start, end) if not text[at].isspace()), start)


def test_a_token_goes_by_its_first_character_that_is_no_white_space() -> None:
    text = "a é\n\t𝒳  b"
    offsets = [(0, 1), (1, 3), (1, 3), (3, 6), (6, 8), (8, 9)]
    found = anchors(text, offsets)
    assert [text[at] for at in found] == ["a", "é", "é", "𝒳", " ", "b"]
    labels = token_labels({"x": [(0, 2), (4, 7)], "none": [], "all": [(0, 9)]}, found)
    assert labels.tolist() == [[True, False, False, True, True, False], [False] * 6, [True] * 6]


@settings(deadline=None)
@given(st.text("a \n\t\x85\u3000é𝒳\x00", min_size=1, max_size=30), st.data())
def test_anchors_and_labels_are_those_of_a_plain_loop(text: str, data: st.DataObject) -> None:
    at = st.integers(0, len(text))
    offsets = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(at, at), min_size=1))]
    cuts = sorted(set(data.draw(st.lists(at))))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    found = anchors(text, offsets)
    assert found.tolist() == [naive_anchor(text, *span) for span in offsets]
    expected = [any(start <= anchor < end for start, end in spans) for anchor in found]
    assert token_labels({"x": spans}, found)[0].tolist() == expected


def test_offsets_of_a_byte_level_tokenizer_cover_the_text(tokenizer: SubjectTokenizer) -> None:
    text = "def f(x):\n\treturn 'é𝒳'  + x\n"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids) == text
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
    assert all(start <= before for (_, before), (start, _) in pairwise(offsets))
    labels = dict(zip(NAMES, token_labels(concept_spans(text), anchors(text, offsets)), strict=True))
    pieces = [offsets[i] for i in np.flatnonzero(labels["string"])]
    assert len(pieces) > 4 and "".join(dict.fromkeys(text[a:b] for a, b in pieces)).strip() == "'é𝒳'"
    assert next(text[slice(*offsets[i])].strip() for i in np.flatnonzero(labels["keyword"])) == "def"


def test_rows_are_balanced_and_few_and_come_from_many_files(probe_set: ProbeSet) -> None:
    assert len(probe_set.tasks) >= 20
    for task, asked in enumerate(probe_set.tasks):
        for split in (TRAIN, TEST):
            rows = probe_set.rows(task, split)
            files, counts = np.unique(probe_set.document_r[rows], return_counts=True)
            positive = np.bincount(probe_set.document_r[rows], weights=probe_set.label_r[rows])[files]
            assert files.size >= SAMPLING.min_documents
            assert counts.max() <= SAMPLING.rows_per_document
            np.testing.assert_array_equal(2 * positive, counts)
            first = SAMPLING.first_position_long_range if asked.long_range else SAMPLING.first_position
            assert probe_set.position_r[rows].min() >= first
    assert (probe_set.position_r < probe_set.length_c[probe_set.context_r]).all()
    places = np.stack([probe_set.task_r, probe_set.context_r, probe_set.position_r])
    assert np.unique(places, axis=1).shape == places.shape


def test_files_are_on_one_side_and_give_few_contexts(probe_set: ProbeSet, documents: list[Document]) -> None:
    names = np.array(probe_set.documents)
    train, test = (set(names[probe_set.document_r[probe_set.test_r == side]]) for side in (False, True))
    assert train <= {document.id for document in documents[:45]}
    assert test <= {document.id for document in documents[45:]}
    assert np.bincount(probe_set.document_c).max() <= SAMPLING.contexts_per_document
    assert set(probe_set.context_r) == set(range(len(probe_set.length_c)))


def test_contexts_are_runs_of_one_document_and_labels_those_of_its_spans(
    probe_set: ProbeSet, documents: list[Document], tokenizer: SubjectTokenizer
) -> None:
    texts = {document.id: document.text for document in documents}
    for c in range(0, len(probe_set.length_c), 7):
        text = texts[probe_set.documents[probe_set.document_c[c]]]
        ids, offsets = tokenizer.encode_with_offsets(text)
        context = probe_set.ids_cl[c, : probe_set.length_c[c]].tolist()
        assert set(probe_set.ids_cl[c, probe_set.length_c[c] :]) <= {tokenizer.pad_id}
        prefix = int(context[0] == tokenizer.bos_id)
        starts = [i for i in range(len(ids)) if ids[i : i + len(context) - prefix] == context[prefix:]]
        assert starts and (not prefix or starts[0] == 0)
        if len(starts) > 1:
            continue  # repeated text: cannot be told which one it is
        spans = concept_spans(text)
        for r in np.flatnonzero(probe_set.context_r == c):
            at = naive_anchor(text, *offsets[starts[0] + probe_set.position_r[r] - prefix])
            concept = probe_set.tasks[probe_set.task_r[r]].name
            assert any(start <= at < end for start, end in spans[concept]) == probe_set.label_r[r]


def test_the_order_of_documents_changes_nothing_and_the_seed_does(
    probe_set: ProbeSet, documents: list[Document], tokenizer: SubjectTokenizer
) -> None:
    again = build_probe_set(documents[44::-1], documents[:44:-1], tokenizer, SAMPLING)
    assert again.fingerprint() == probe_set.fingerprint() and again.dropped == probe_set.dropped
    other = build_probe_set(documents[:45], documents[45:], tokenizer, replace(SAMPLING, seed=1))
    assert other.fingerprint() != probe_set.fingerprint()


def test_rare_concepts_are_dropped_by_name(probe_set: ProbeSet) -> None:
    reasons = {item.name: item.reason for item in probe_set.dropped}
    assert [task.name for task in probe_set.tasks if task.name not in reasons] == [n for n in NAMES if n not in reasons]
    assert "30 each are needed" in reasons["annotation"]


def template(i: int, *, extra: str = "") -> Document:
    """A class of methods; `self` occurs exactly where a parameter is listed."""
    methods = "".join(f"    def method{j}(self):\n        return {i + j} + {j}{extra}\n" for j in range(12))
    return Document(f"{i}.py", f"import a{i}\nclass C{i}:\n{methods}", "made")


def test_of_two_concepts_that_agree_the_later_is_dropped(tokenizer: SubjectTokenizer) -> None:
    sides = [template(i) for i in range(30)], [template(i) for i in range(30, 60)]
    found = build_probe_set(*sides, tokenizer, SAMPLING)
    assert Dropped("parameter", "agrees with self: φ = 1.00") in found.dropped
    assert "self" in [task.name for task in found.tasks]
    apart = [[replace(d, text=d.text.replace("(self)", "(self, x, yy)")) for d in side] for side in sides]
    assert "parameter" in [task.name for task in build_probe_set(*apart, tokenizer, SAMPLING).tasks]


def test_documents_that_do_not_parse_are_named_and_left_out(tokenizer: SubjectTokenizer) -> None:
    sides = [template(i) for i in range(30)], [template(i) for i in range(30, 60)]
    plain = build_probe_set(*sides, tokenizer, SAMPLING)
    found = build_probe_set([*sides[0], Document("bad.py", "def (", "made")], sides[1], tokenizer, SAMPLING)
    assert found.skipped == ("bad.py",) and found.fingerprint() == plain.fingerprint()


def test_the_first_documents_in_the_seeded_order_are_read(
    probe_set: ProbeSet, documents: list[Document], tokenizer: SubjectTokenizer
) -> None:
    few = replace(SAMPLING, train_documents=32, test_documents=31)
    found = build_probe_set(documents[:45], documents[45:], tokenizer, few)
    assert len(found.documents) == 63 and set(found.documents) < set(probe_set.documents)


def test_input_that_gives_no_probe_set_is_refused(documents: list[Document], tokenizer: SubjectTokenizer) -> None:
    with pytest.raises(PipelineError, match="training and a test document"):
        build_probe_set(documents[:2], documents[1:3], tokenizer, SAMPLING)
    with pytest.raises(PipelineError, match="give more documents"):
        build_probe_set(documents[:2], documents[2:4], tokenizer, SAMPLING)
    with pytest.raises(PipelineError, match="even number from 2 to 50"):
        Sampling(rows_per_document=52)
    with pytest.raises(PipelineError, match="lengthen the context"):
        Sampling(context=64)


def test_contexts_are_chosen_to_cover_concepts() -> None:
    holds_kc = np.zeros((5, 6), bool)
    holds_kc[0, :] = True
    holds_kc[1, 4] = holds_kc[2, 1] = True
    holds_kc[3:, [0, 2]] = True  # one of the two is enough
    for seed in range(5):
        chosen = choose_contexts(holds_kc, 3, np.random.default_rng(seed))
        assert {1, 4} < set(chosen.tolist()) and chosen.size == 3 and (np.diff(chosen) > 0).all()
        assert choose_contexts(holds_kc, 9, np.random.default_rng(seed)).tolist() == list(range(6))


def test_draws_are_balanced_and_eligible() -> None:
    random_ = np.random.default_rng(0)
    positive, eligible = random_.random(200) < 0.1, random_.random(200) < 0.7
    with_label, without = draw_balanced(positive, eligible, 25, random_)
    assert with_label.size == without.size == min(25, int((positive & eligible).sum()))
    assert positive[with_label].all() and not positive[without].any()
    assert eligible[with_label].all() and eligible[without].all()
    assert draw_balanced(positive, np.zeros(200, bool), 25, random_)[0].size == 0


def test_agreement_is_the_correlation_over_all_tokens() -> None:
    random_ = np.random.default_rng(0)
    labels = random_.random((4, 300)) < 0.3
    labels[1] = labels[0] ^ (random_.random(300) < 0.1)
    agreement = Agreement(5)
    for part in np.split(np.vstack([labels, np.ones((1, 300), bool)]), 3, axis=1):
        agreement.add(part)
    phi = agreement.phi()
    np.testing.assert_allclose(phi[:4, :4], np.corrcoef(labels), atol=1e-12)
    assert (phi[4] == 0).all()


def card_folder(folder: Path, card: object) -> SubjectConfig:
    (folder / "card.json").write_text(json.dumps(card))
    return SubjectConfig(alias="x", id=str(folder))


def test_the_card_divides_the_documents(tmp_path: Path) -> None:
    made = [template(i) for i in range(4)]
    subject = card_folder(tmp_path, {"train": ["0.py", "2.py", "gone.py"], "held_out": ["3.py"]})
    train, held_out = by_card(made, subject, root=tmp_path)
    assert [d.id for d in train] == ["0.py", "2.py"] and [d.id for d in held_out] == ["3.py"]


@pytest.mark.parametrize("card", [{}, {"train": ["a"]}, {"train": [], "held_out": ["a"]}])
def test_a_subject_without_lists_is_refused(tmp_path: Path, card: dict[str, Sequence[str]]) -> None:
    with pytest.raises(PipelineError, match="lists its `train` and `held_out`"):
        by_card([], card_folder(tmp_path, card), root=tmp_path)
