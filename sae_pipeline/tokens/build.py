"""Build the tokens artefact: read, encode, split, pack, permute, cut, measure, write."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import Draft, PipelineError, Progress, silent
from sae_pipeline.study import Corpus, TokensConfig
from sae_pipeline.tokens.corpora import documents, is_hub
from sae_pipeline.tokens.encoded import Encoded
from sae_pipeline.tokens.growth import Earlier
from sae_pipeline.tokens.near_duplicates import near_duplicate_clusters
from sae_pipeline.tokens.packing import Layout, Packed, count_rows, gather, pack
from sae_pipeline.tokens.read import Tokens
from sae_pipeline.tokens.schema import (
    CHUNK_CONTEXTS,
    DOCUMENTS,
    FILES,
    LAYOUT,
    SHARD_CONTEXTS,
    SPLITS,
    ids_array,
    index_array,
)
from sae_pipeline.tokens.select import cut, permuted, row_budgets
from sae_pipeline.tokens.split import HELD_OUT, TRAIN, Candidates, order_key, split_documents
from sae_pipeline.tokens.tables import Side, document_table, parquet_bytes, summarise
from sae_pipeline.tokens.tokenizer import Tokenizer

HUB_SURPLUS = 1.1  # read this much more than the budgets: duplicates and padding take their part


def build_tokens(
    draft: Draft,
    config: TokensConfig,
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    *,
    seed: int,
    root: Path,
    split_list: Mapping[str, Sequence[str]] | None = None,
    files: Mapping[str, Mapping[str, str]] | None = None,
    continues: Tokens | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write ids, index and documents of both splits into `draft`; returns the summary.

    `split_list`: for every corpus split by `embedded_card`, the names that the subject's card holds out. `files`:
    digests of local files by corpus, kept so that a later version can tell that it continues this one. `continues`: the
    version that this one begins with (see `growth`); all that it read must still be there. The result is
    a function of the arguments and the corpora's content alone; run again on the same draft it skips committed shards.
    Raises PipelineError for corpora, budgets and policies that cannot work, before anything is written.
    """
    layout = Layout.of(config, tokenizer, seed=seed)
    shares = _shares(corpora)
    earlier = Earlier(continues, layout, tokenizer.fingerprint, seed) if continues is not None else None
    scratch_dir = draft.path / ".scratch"
    shutil.rmtree(scratch_dir, ignore_errors=True)
    scratch_dir.mkdir()
    try:
        encoded = _encode(corpora, config, shares, tokenizer, root, scratch_dir / "ids.bin", earlier, progress)
        if earlier is not None:
            earlier.put_first(encoded)
        clusters = near_duplicate_clusters(encoded, threshold=config.split.jaccard, progress=progress)
        if earlier is None:
            found = Candidates(encoded.names, encoded.corpora, clusters, encoded.n_tokens)
            needed = _needed(found, shares, config)
            sides = np.asarray(split_documents(found, corpora, needed, seed=seed, split_list=split_list or {}))
        else:
            sides = earlier.sides(encoded, clusters, split_list or {})
        chosen = {split: _choose(split, encoded, sides, layout, config, shares, seed, earlier) for split in SPLITS}
        table = document_table(encoded, sides, clusters, chosen)
        for split in SPLITS:
            _write_split(draft, split, chosen[split], encoded, layout, tokenizer.vocab_size, progress)
    finally:
        shutil.rmtree(scratch_dir)
    draft.write_bytes(DOCUMENTS, parquet_bytes(table))
    meta = {**layout.to_json(), "vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.fingerprint}
    requested = {TRAIN: config.train, HELD_OUT: config.held_out}
    grown = earlier.layout_entries(int(chosen[TRAIN].rows.sum())) if earlier else {}
    draft.write_json(LAYOUT, {**meta, "requested_rows": requested, **grown})
    if files:
        draft.write_json(FILES, files)
    return summarise(table, chosen, requested, layout) | grown


def _shares(corpora: Sequence[Corpus]) -> dict[str, float]:
    """Share of the rows that each corpus is to have."""
    total = sum(corpus.weight for corpus in corpora)
    names = [corpus.name for corpus in corpora]
    if not names or total <= 0 or len(set(names)) < len(names):
        raise PipelineError(f"corpora {names}: at least one with a weight above 0 is needed, and no name twice")
    return {corpus.name: corpus.weight / total for corpus in corpora if corpus.weight > 0}


def _encode(
    corpora: Sequence[Corpus],
    config: TokensConfig,
    shares: Mapping[str, float],
    tokenizer: Tokenizer,
    root: Path,
    path: Path,
    earlier: Earlier | None,
    progress: Progress,
) -> Encoded:
    encoded = Encoded(path)
    for corpus in corpora:
        if corpus.name not in shares:
            continue
        limit = corpus.tokens or (1 << 62)
        if is_hub(corpus):
            limit = min(limit, int(HUB_SURPLUS * shares[corpus.name] * (config.train_tokens + config.held_out)))
        before, bounded = len(encoded), limit < 1 << 62
        source = documents(corpus, root=root, progress=silent if bounded else progress)
        if earlier is None:
            read = encoded.add(source, tokenizer)
        else:
            read = earlier.read_again(encoded, source, tokenizer, corpus.name, limit)
        n_tokens = 0
        for n_batch in read:
            n_tokens += n_batch
            if bounded:
                progress.update(min(n_tokens, limit), limit, "tokens", corpus=corpus.name)
            if n_tokens >= limit and earlier is None:
                break
        if len(encoded) == before:
            raise PipelineError(f"corpus {corpus.name} ({corpus.source}) holds no text")
    return encoded


def _needed(found: Candidates, shares: Mapping[str, float], config: TokensConfig) -> dict[str, float]:
    """Tokens to hold out per corpus: its budget, or its proportional part where the text does not fill both budgets."""
    proportion = config.held_out / (config.held_out + config.train_tokens)
    corpora = np.asarray(found.corpora)
    totals = {name: int(found.n_tokens[corpora == name].sum()) for name in shares}
    return {name: min(share * config.held_out, proportion * totals[name]) for name, share in shares.items()}


def _choose(
    split: str,
    encoded: Encoded,
    sides: NDArray[np.str_],
    layout: Layout,
    config: TokensConfig,
    shares: Mapping[str, float],
    seed: int,
    earlier: Earlier | None,
) -> Side:
    packed = _packed_side(split, encoded, sides, layout, seed)
    rows = count_rows(encoded.flat, encoded.offsets, packed, layout if split == TRAIN else layout.whole)
    names = list(shares)
    corpus_c = np.asarray([names.index(name) for name in encoded.corpora])[packed.document]
    available = {name: int(rows[corpus_c == number].sum()) for number, name in enumerate(names)}
    empty = [name for name, n in available.items() if not n]
    if empty and (earlier is None or split == TRAIN):
        raise PipelineError(f"corpus {', '.join(empty)} has no {split} rows; give it more documents or weight 0")
    budget = config.train if split == TRAIN else config.held_out
    budgets = list(row_budgets(available, shares, budget).values())
    if earlier is not None:
        kept = earlier.choose(split, encoded, packed, rows, corpus_c, budgets, budget)
    else:
        order = permuted(len(packed), seed) if split == TRAIN else np.arange(len(packed))
        kept = cut(order, rows, corpus_c, budgets)
    if not kept.size:
        raise PipelineError(f"tokens.{split} is below one context of {layout.context} tokens; raise it")
    return Side(packed[kept], rows[kept], sum(available.values()))


def _packed_side(split: str, encoded: Encoded, sides: NDArray[np.str_], layout: Layout, seed: int) -> Packed:
    """All contexts of a split; held-out documents in a seeded order, so that any prefix is a fair sample of them."""
    members = np.flatnonzero(sides == split)
    if split == HELD_OUT:
        members = np.asarray(sorted(members.tolist(), key=lambda i: order_key(encoded.names[i], seed)))
    packed = pack(encoded.n_tokens[members], layout)
    if split == TRAIN and packed.length.max() < layout.context:
        raise PipelineError(
            f"no document fills a context of {layout.context} tokens (the longest gives {packed.length.max()}); "
            "lower tokens.context"
        )
    return Packed(members[packed.document].astype(np.int32), packed.start, packed.length)


def _write_split(
    draft: Draft, split: str, side: Side, encoded: Encoded, layout: Layout, vocab_size: int, progress: Progress
) -> None:
    n = len(side.packed)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    array = partial(draft.array, shard_rows=SHARD_CONTEXTS, chunk_rows=CHUNK_CONTEXTS)
    ids = array(ids_array(split), shape=(n, layout.context), dtype=dtype)
    index = array(index_array(split), shape=(n, 4), dtype="int32")
    columns = np.stack([side.packed.document, side.packed.start, side.packed.length, side.rows], 1).astype(np.int32)
    for i in range(ids.n_shards):
        rows = ids.rows(i)
        if not ids.is_committed(i):
            block = gather(encoded.flat, encoded.offsets, side.packed[rows], layout)
            ids.write_shard(i, block.astype(ids.dtype))
        index.write_shard(i, columns[rows])
        progress.update(rows.stop, n, "contexts", split=split)
