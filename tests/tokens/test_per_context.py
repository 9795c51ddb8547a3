"""At most m positions of a context become rows: drawn evenly, by seed and context alone, in training only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_growth import build, corpus, folder, texts, write  # noqa: F401 (folder is a fixture)
from token_doubles import ByteTokenizer

from sae_pipeline.study import TokensConfig
from sae_pipeline.tokens import Tokens, audit_frame
from sae_pipeline.tokens.sampling import drawn

PLAIN = TokensConfig(context=16, train=600, held_out=800)
THREE = PLAIN.model_copy(update={"per_context": 3})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_as_many_as_asked_for_or_all_that_there_are(seed: int, contexts: int, n: int, data_seed: int) -> None:
    rng = np.random.default_rng(data_seed)
    eligible_cl = rng.random((contexts, 13)) < 0.6
    document_c, start_c = rng.integers(0, 2**31, contexts), rng.integers(0, 2**31, contexts)
    chosen_cl = drawn(eligible_cl, document_c, start_c, n=n, seed=seed)
    assert not (chosen_cl & ~eligible_cl).any()
    assert chosen_cl.sum(axis=1).tolist() == np.minimum(n, eligible_cl.sum(axis=1)).tolist()
    for c in range(contexts):  # whatever stands beside it
        alone = drawn(eligible_cl[c : c + 1], document_c[c : c + 1], start_c[c : c + 1], n=n, seed=seed)
        np.testing.assert_array_equal(alone[0], chosen_cl[c])
    unlucky_cl = eligible_cl & ~chosen_cl
    fewer_cl = eligible_cl & ~(unlucky_cl & (rng.random(eligible_cl.shape) < 0.5))
    np.testing.assert_array_equal(drawn(fewer_cl, document_c, start_c, n=n, seed=seed), chosen_cl)


def test_every_position_is_alike_likely_and_contexts_are_independent() -> None:
    n_contexts, length, n = 20_000, 16, 4
    eligible_cl = np.ones((n_contexts, length), bool)
    document_c = np.repeat(np.arange(n_contexts // 10), 10)
    start_c = np.tile(np.arange(10) * length, n_contexts // 10)
    chosen_cl = drawn(eligible_cl, document_c, start_c, n=n, seed=0)
    share_l = chosen_cl.mean(axis=0)
    sd = np.sqrt(n / length * (1 - n / length) / n_contexts)
    assert np.abs(share_l - n / length).max() < 4.5 * sd
    together = (chosen_cl[:-1] & chosen_cl[1:]).sum(axis=1).mean()  # of neighbours in a document, mostly
    assert together == pytest.approx(n * n / length, abs=0.03)
    pair = (chosen_cl[:, :-1] & chosen_cl[:, 1:]).mean()
    assert pair == pytest.approx(n / length * (n - 1) / (length - 1), abs=0.002)


def test_the_seed_draws_others() -> None:
    eligible_cl, zeros = np.ones((500, 16), bool), np.zeros(500, np.int64)
    one, other = (drawn(eligible_cl, np.arange(500), zeros, n=4, seed=seed) for seed in (0, 1))
    assert (one & other).sum() == pytest.approx(500, rel=0.2)  # 4 · 4/16 a context by chance


def rows_of(tokens: Tokens) -> dict[tuple[str, int], list[int]]:
    """Positions that become rows, by document and start of the context."""
    train, table = tokens.split("train"), tokens.documents
    names = table["id"].to_numpy()[train.document]
    mask = train.row_mask(0, train.n)
    return {
        (name, start): np.flatnonzero(row).tolist()
        for name, start, row in zip(names.tolist(), train.start.tolist(), mask, strict=True)
    }


def test_training_contexts_are_thinned_and_held_out_ones_are_not(tmp_path: Path, folder: Path) -> None:  # noqa: F811
    plain, _ = build(tmp_path / "plain", [corpus("lib")], config=PLAIN)
    thin, summary = build(tmp_path / "thin", [corpus("lib")], config=THREE)
    per_context = {len(positions) for positions in rows_of(thin).values()}
    assert max(per_context) == 3 and summary["train_rows"] == thin.split("train").n_rows
    assert 600 - 3 < thin.split("train").n_rows <= 600 and thin.sized_by_rows == thin.split("train").n_rows
    assert thin.split("train").n > 4 * plain.split("train").n
    held_out = thin.split("held_out")
    assert np.diff(held_out.row_offsets).max() == 16
    np.testing.assert_array_equal(held_out.row_mask(0, held_out.n).sum(axis=1), np.diff(held_out.row_offsets))
    assert (audit_frame(thin._source)["rows_minus_mask"] == 0).all()
    tokenizer = ByteTokenizer()
    for row in range(0, thin.split("train").n_rows, 53):
        name, position = thin.trace("train", row)
        c, at = thin.split("train").locate(row)
        document = tokenizer.encode_batch([(folder / name).read_text()])[0]
        expected = tokenizer.bos_id if position == -1 else document[position]
        assert thin.split("train").ids(c, c + 1)[0, at] == expected


def test_rows_of_a_context_do_not_depend_on_the_rest(tmp_path: Path, folder: Path) -> None:  # noqa: F811
    """Another budget, and a later version of the corpora: the same contexts give the same rows."""
    small, _ = build(tmp_path / "small", [corpus("lib")], config=THREE)
    large, _ = build(tmp_path / "large", [corpus("lib")], config=THREE.model_copy(update={"train": 900}))
    for i, text in enumerate(texts(1, 5)):
        write(folder, f"a{i}.txt", text)
    grown, _ = build(tmp_path / "grown", [corpus("lib")], small, THREE.model_copy(update={"train": 900}))
    expected = rows_of(small)
    assert len(rows_of(large)) > len(expected) and len(rows_of(grown)) > len(expected)
    shared = rows_of(large).keys() & expected.keys()
    assert len(shared) > len(expected) / 2
    assert all(rows_of(large)[place] == expected[place] for place in shared)
    assert {place: rows_of(grown)[place] for place in expected} == expected
    before, after = small.split("train"), grown.split("train")
    np.testing.assert_array_equal(after.row_offsets[: before.n + 1], before.row_offsets)


def test_a_study_that_does_not_ask_for_it_is_what_it_was(tmp_path: Path, folder: Path) -> None:  # noqa: F811
    plain, _ = build(tmp_path / "plain", [corpus("lib")], config=PLAIN)
    assert set(plain._source.read_json("layout.json")) & {"per_context", "seed"} == set()
    assert "per_context" not in PLAIN.determining() and THREE.determining()["per_context"] == 3
    assert PLAIN.train_tokens == PLAIN.train


@pytest.mark.parametrize(("per_context", "tokens"), [(3, 3_200), (8, 1_200), (16, 600), (40, 600)])
def test_the_text_that_a_budget_takes(per_context: int, tokens: int) -> None:
    assert PLAIN.model_copy(update={"per_context": per_context}).train_tokens == tokens
