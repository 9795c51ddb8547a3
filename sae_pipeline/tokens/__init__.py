"""Tokens: corpora, the split into training and held-out documents, contexts of token ids."""

from sae_pipeline.tokens.audit import audit_frame
from sae_pipeline.tokens.build import build_tokens
from sae_pipeline.tokens.corpora import documents, fingerprint
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.files import CorpusError
from sae_pipeline.tokens.near_duplicates import lexical_tokens, near_duplicate_clusters
from sae_pipeline.tokens.overlap import Overlap, window_overlap
from sae_pipeline.tokens.read import Contexts, Tokens
from sae_pipeline.tokens.stdlib import stdlib_documents
from sae_pipeline.tokens.survey import check_corpora
from sae_pipeline.tokens.tokenizer import Tokenizer

__all__ = [
    "Contexts",
    "CorpusError",
    "Document",
    "Overlap",
    "Tokenizer",
    "Tokens",
    "audit_frame",
    "build_tokens",
    "check_corpora",
    "documents",
    "fingerprint",
    "lexical_tokens",
    "near_duplicate_clusters",
    "stdlib_documents",
    "window_overlap",
]
