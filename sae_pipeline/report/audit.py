"""The gate of the report: does the page hold every autoencoder, and does it stand alone?"""

import re
from html.parser import HTMLParser

import pandas as pd

from sae_pipeline.report.summary import PAGE, SUMMARY
from sae_pipeline.store import Artefact, Draft

_CSS_REFERENCE = re.compile(r"@import|url\(\s*['\"]?(?!#|data:)", re.IGNORECASE)
_LOADING_TAGS = frozenset({"script", "link", "iframe", "object", "embed"})


def audit_frame(source: Draft | Artefact) -> pd.DataFrame:
    """Statistics for the gate, one row.

    Columns: autoencoders (rows of the page's matched tables), autoencoders_expected (those of the summary),
    external_references (scripts, frames, links and style sheets that lead out of the page), bytes.
    """
    page = source.file(PAGE).read_text()
    reader = _Reader()
    reader.feed(page)
    reader.close()
    figures = {
        "autoencoders": reader.autoencoders,
        "autoencoders_expected": source.read_json(SUMMARY)["autoencoders"],
        "external_references": reader.external_references,
        "bytes": len(page.encode()),
    }
    return pd.DataFrame([figures])


class _Reader(HTMLParser):
    """Counts what `audit_frame` reports."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoders = 0
        self.external_references = 0
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        named = dict(attrs)
        self.autoencoders += tag == "th" and named.get("class") == "autoencoder"
        self.external_references += tag in _LOADING_TAGS
        for name, value in attrs:
            leads_out = name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:"))
            styled = name in ("style", "clip-path", "fill") and _CSS_REFERENCE.search(value or "") is not None
            self.external_references += leads_out or styled

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.external_references += len(_CSS_REFERENCE.findall(data))
