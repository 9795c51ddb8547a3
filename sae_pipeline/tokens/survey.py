"""Reading the corpora once before anything is made: what a build would stumble over is named here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_pipeline.store import Progress, silent
from sae_pipeline.study import Corpus, TokensConfig
from sae_pipeline.tokens.corpora import documents, is_hub
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.files import SEPARATOR, CorpusError
from sae_pipeline.tokens.hub import PREFIX, check_reachable, resolve_commit
from sae_pipeline.tokens.packing import Layout
from sae_pipeline.tokens.tokenizer import Tokenizer

_CHARACTERS_PER_TOKEN = 16  # more than a tokenizer's average on any text: a bound on what a limit in tokens can read
_HUB_DOCUMENTS = 64  # enough to see that the field is there


def check_corpora(
    config: TokensConfig,
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    *,
    root: Path,
    split_list: Mapping[str, Collection[str]],
    progress: Progress = silent,
) -> None:
    """Read what `build_tokens` would read, without making anything; of a hub dataset only the first documents.

    Whether near-duplicates leave enough on both sides of the split only the build can tell.

    Args:
        config: contexts, budgets and policies of the study.
        corpora: its corpora; those of weight 0 are passed over, as in the build.
        tokenizer: the subject's.
        root: folder that relative sources start from.
        split_list: for every corpus split by `embedded_card`, the names that the card holds out.
        progress: told the bytes read.

    Raises:
        PipelineError: a file cannot be read or a record has no text, a corpus cannot be divided into training and
            held-out documents, no document fills a context, or the tokenizer lacks what the policy needs.
    """
    layout = Layout.of(config, tokenizer, seed=0)  # the length of contexts is all that counts here
    longest = 0
    for corpus in corpora:
        if corpus.weight:
            seen = _survey(corpus, layout, tokenizer, set(split_list.get(corpus.name, ())), root, progress)
            _require(corpus, seen)
            longest = max(longest, seen.longest)
    if longest < layout.context and not any(is_hub(corpus) for corpus in corpora):
        raise CorpusError(
            f"no document fills a context of {layout.context} tokens (the longest gives {longest}); "
            "lower tokens.context"
        )


@dataclass
class _Seen:
    """What was seen of a corpus: documents, whether two differ, whether the card names one, the fullest context."""

    names: set[str]
    documents: int = 0
    first: str = field(default="", repr=False)
    differ: bool = False
    listed: bool = False
    longest: int = 0

    def add(self, document: Document) -> None:
        self.first = self.first if self.documents else document.text
        self.differ = self.differ or document.text != self.first
        self.listed = self.listed or document.id in self.names
        self.documents += 1


def _survey(
    corpus: Corpus, layout: Layout, tokenizer: Tokenizer, names: set[str], root: Path, progress: Progress
) -> _Seen:
    if is_hub(corpus):
        name = corpus.source.removeprefix(PREFIX)
        check_reachable(name, resolve_commit(name, corpus.revision))
    seen, characters = _Seen(names), 0
    for document in documents(corpus, root=root, progress=progress):
        seen.add(document)
        if seen.longest < layout.context:
            seen.longest = max(seen.longest, _length(document.text, layout, tokenizer))
        characters += len(document.text)
        beyond = corpus.tokens is not None and characters > _CHARACTERS_PER_TOKEN * corpus.tokens
        if beyond or (is_hub(corpus) and seen.documents == _HUB_DOCUMENTS):
            break
    return seen


def _length(text: str, layout: Layout, tokenizer: Tokenizer) -> int:
    """Tokens in the first context of a document, BOS included; a long text is not encoded as a whole for that."""
    start = text[: _CHARACTERS_PER_TOKEN * layout.context]
    for part in (start, text) if len(start) < len(text) else (text,):
        length = min(layout.context, len(tokenizer.encode_batch([part])[0]) + (layout.bos != "none"))
        if length == layout.context:
            break
    return length


def _require(corpus: Corpus, seen: _Seen) -> None:
    if not seen.documents:
        raise CorpusError(f"corpus {corpus.name} ({corpus.source}) holds no text; point `source` at files with text")
    if corpus.split == "embedded_card":
        if not seen.listed and corpus.tokens is None:
            raise CorpusError(
                f"corpus {corpus.name} has none of the documents that the card holds out; "
                "use split: near_duplicate_cluster"
            )
    elif not seen.differ:
        raise CorpusError(
            f"corpus {corpus.name} ({corpus.source}) is too small to hold documents out: {seen.documents} "
            f"document{'s' * (seen.documents > 1)} of one text; add files, or divide it by lines {SEPARATOR}"
        )
