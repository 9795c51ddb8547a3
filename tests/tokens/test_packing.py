from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.store import PipelineError
from sae_pipeline.tokens.packing import Layout, count_rows, gather, pack

BOS, PAD, SPECIAL = 1000, 1001, 7


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    return Layout(
        context=draw(st.integers(2, 9)),
        bos=draw(st.sampled_from(["document_start", "every_context", "none"])),
        exclude=tuple(draw(st.sets(st.sampled_from(["bos", "pad", "special"])))),
        bos_id=BOS,
        pad_id=PAD,
        special_ids=(SPECIAL, BOS, PAD),
    )


documents = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(layouts(), documents)
def test_contexts_of_a_document_put_together_are_the_document(layout: Layout, texts: list[list[int]]) -> None:
    flat, n_tokens = np.concatenate([np.asarray(t) for t in texts]), np.asarray([len(t) for t in texts])
    offsets = np.cumsum(n_tokens) - n_tokens
    packed = pack(n_tokens, layout)
    ids_cl = gather(flat, offsets, packed, layout)
    assert ids_cl.shape == (len(packed), layout.context)
    again: list[list[int]] = [[] for _ in texts]
    for c, row in enumerate(ids_cl.tolist()):
        document, start, length = int(packed.document[c]), int(packed.start[c]), int(packed.length[c])
        begins = layout.bos == "every_context" or (layout.bos == "document_start" and start == 0)
        assert 0 < length <= layout.context
        assert row[length:] == [PAD] * (layout.context - length)
        assert (row[0] == BOS) == begins
        own = row[int(begins) : length]
        assert start == len(again[document])  # contexts follow each other without gap, in order
        again[document] += own
    assert again == texts


@settings(max_examples=60, deadline=None)
@given(layouts(), documents)
def test_rows_are_the_positions_that_the_policy_keeps(layout: Layout, texts: list[list[int]]) -> None:
    flat, n_tokens = np.concatenate([np.asarray(t) for t in texts]), np.asarray([len(t) for t in texts])
    offsets = np.cumsum(n_tokens) - n_tokens
    packed = pack(n_tokens, layout)
    ids_cl = gather(flat, offsets, packed, layout)
    dropped = {PAD} | ({BOS} if "bos" in layout.exclude else set())
    dropped |= {SPECIAL, BOS} if "special" in layout.exclude else set()
    expected = [[i not in dropped for i in row] for row in ids_cl.tolist()]
    mask_cl = layout.row_mask(ids_cl, packed)
    assert mask_cl.tolist() == expected
    assert count_rows(flat, offsets, packed, layout).tolist() == [sum(row) for row in expected]


def test_padding_is_no_row_even_where_text_holds_the_padding_id() -> None:
    layout = Layout(context=4, bos="none", exclude=(), bos_id=None, pad_id=5, special_ids=())
    packed = pack(np.asarray([2]), layout)
    ids_cl = gather(np.asarray([5, 5]), np.asarray([0]), packed, layout)
    assert ids_cl.tolist() == [[5, 5, 5, 5]]
    assert layout.row_mask(ids_cl, packed).tolist() == [[True, True, False, False]]


def test_policies_that_cannot_work_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"set tokens\.bos: none"):
        Layout(context=4, bos="document_start", exclude=(), bos_id=None, pad_id=0, special_ids=())
    with pytest.raises(PipelineError, match="at least 2"):
        Layout(context=1, bos="none", exclude=(), bos_id=None, pad_id=0, special_ids=())
