"""The page: whole, well-formed, alone, escaped, the same for the same input."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_study as study

from sae_pipeline.report import ReportInputs, SiteInputs, audit_frame, render, summary_table, write_report
from sae_pipeline.report.html import VOID
from sae_pipeline.store import Draft

HOSTILE = """<script>alert("1")</script><img src=x onerror='x'>&"""


class Outline(HTMLParser):
    """Tags must nest; collects anchors, ids and the titles of the sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: set[str] = set(re.findall(r"url\(#([^)]+)\)", text))
        self.headings: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        named = dict(attrs)
        assert len(named) == len(attrs), f"an attribute twice in <{tag}>"
        self.ids += [named["id"]] if "id" in named else []
        self.targets |= {named["href"][1:]} if "href" in named else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def small_site(**changes) -> SiteInputs:
    """Four autoencoders and no curves: quick to draw."""
    keep = ["topk-n256-k4", "topk-n256-k8", "topk-n512-k4", "topk-n512-k8"]
    members, metrics = study.autoencoders(), study.metrics()
    fields = {
        "site": "code.2.resid_post",
        "autoencoders": members[members["autoencoder"].isin(keep)],
        "metrics": metrics[metrics["autoencoder"].isin(keep)],
        "curves": study.curves().iloc[:0],
    }
    return SiteInputs(**(fields | changes))


def small(**changes) -> ReportInputs:
    return study.report_inputs(**({"sites": [small_site()], "documents": None} | changes))


def test_sections_come_in_reading_order(page):
    outline = Outline(page)
    wanted = [
        "Demo: TopK autoencoders on a small code model", "Lineage", "Sparsity against quality",
        "All autoencoders, matched by sparsity", "Quality against size", "Fitted laws", "Refused laws", "Training",
        "Latent density", "Error by position", "Gates", "Data", "Tokens", "code.2.resid_post", "Provenance",
    ]  # fmt: skip
    assert outline.headings == wanted


def test_page_is_well_formed_and_its_anchors_lead_somewhere(page):
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.targets <= set(outline.ids)
    assert not outline.names & {"script", "link", "img", "iframe"}


def test_page_mentions_no_address_and_follows_the_dark_mode(page):
    assert "://" not in page
    drawings = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(drawings) == 12
    for drawing in drawings:
        colours = re.findall(r"(?<![-\w,] )(?<!-)#[0-9a-f]{6}\b", re.sub(r"var\([^)]*\)", "", drawing))
        assert not colours, f"colours that a dark page cannot change: {colours[:3]}"


def test_matched_table_shows_values_with_their_intervals(page):
    rows = re.findall(r'<tr[^>]*><th scope="row" class="autoencoder">.*?</tr>', page)
    assert len(rows) == 18
    row = next(row for row in rows if "<code>topk-n4096-k16</code>" in row)
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
    value = study.metrics().query("autoencoder == 'topk-n4096-k16' and metric == 'nmse' and variant == 'all'").iloc[0]
    assert cells[:4] == ["topk-n4096-k16", "4,096", "16", "16.0"]
    assert cells[5:7] == [f"{value['value']:.4f}", "±0.0030"]
    assert "<strong>" in row, "the lowest NMSE of its k is not marked"
    assert "bootstrap" in row and "123 documents" in row


def test_refusals_and_hold_out_errors_are_told(page):
    assert "the irreducible term is pinned at 0" in page
    assert page.count("nmse/topk/L_N+e/k8") == 1
    assert "−1.2 %" in page


def test_same_input_gives_the_same_page_whatever_the_order_of_rows():
    inputs = small(sites=[small_site(training=dict(list(study.training().items())[:1]))])
    site = inputs.sites[0]
    shuffled = dataclasses.replace(
        site,
        metrics=site.metrics.sample(frac=1, random_state=3),
        autoencoders=site.autoencoders.sample(frac=1, random_state=5),
    )
    assert render(inputs) == render(dataclasses.replace(inputs, sites=[shuffled]))


def test_hostile_texts_stay_texts():
    members = study.autoencoders().iloc[:1].assign(autoencoder=HOSTILE, sae_id=HOSTILE)
    metrics = study.metrics().query("autoencoder == 'topk-n256-k4'").assign(autoencoder=HOSTILE, reason=HOSTILE)
    site = small_site(site=HOSTILE, autoencoders=members, metrics=metrics, data={HOSTILE: HOSTILE})
    gates = study.gates().iloc[:2].assign(node=HOSTILE, check=HOSTILE, where=HOSTILE, passed=False)
    nodes = [dataclasses.replace(node, name=HOSTILE, identity=HOSTILE) for node in study.lineage()[:6]]
    texts = {"title": HOSTILE, "study": HOSTILE, "subject": {HOSTILE: HOSTILE}, "provenance": {HOSTILE: HOSTILE}}
    text = render(small(sites=[site], gates=gates, lineage=nodes, **texts))
    assert not Outline(text).names & {"script", "img"}
    assert text.count("&lt;script&gt;") > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"gates": study.gates().iloc[:0], "lineage": [], "tokens": {}, "provenance": {}},
        {"sites": []},
        {"sites": [small_site(metrics=study.metrics().iloc[:0])]},
        {"sites": [small_site(autoencoders=study.autoencoders().iloc[:0], metrics=study.metrics().iloc[:0])]},
    ],
)
def test_a_study_with_little_to_show_says_so(changes):
    text = render(small(**changes))
    Outline(text)
    assert re.search(r'class="note">(No|Nothing) ', text)


def test_missing_values_say_why():
    metrics = study.metrics()
    failed = (metrics["metric"] == "dce") & (metrics["autoencoder"] == "topk-n256-k4")
    metrics.loc[failed, ["value", "ci_lo", "ci_hi"]] = np.nan
    metrics.loc[failed, ["status", "reason"]] = ["failed", "the subject ran out of memory"]
    text = render(small(sites=[small_site(metrics=metrics[metrics["metric"] != "kl"])]))
    assert '<td class="num missing" title="the subject ran out of memory">—</td>' in text
    assert text.count('<td class="num missing" title="not evaluated">—</td>') == 4


def test_refused_laws_leave_points_without_lines():
    laws = study.scaling()
    none = dataclasses.replace(laws, fits=laws.fits.iloc[:0], predictions=laws.predictions.iloc[:0])
    text = render(small(sites=[small_site(scaling=none)]))
    assert "No law was accepted" in text and "Refused laws" in text and "Fitted laws" not in text


def test_several_sites_have_sections_of_their_own():
    outline = Outline(render(small(sites=[small_site(site="code.1.resid_post"), small_site(site="code.2.mlp_out")])))
    titles = [title for title in outline.headings if title in ("code.1.resid_post", "code.2.mlp_out", "Training")]
    # once in the summary, once as a section, once on the data page
    assert titles == [
        "code.1.resid_post", "code.2.mlp_out", "code.1.resid_post", "Training", "code.2.mlp_out", "Training",
        "code.1.resid_post", "code.2.mlp_out",
    ]  # fmt: skip
    assert len(outline.ids) == len(set(outline.ids)) and outline.targets <= set(outline.ids)


def test_written_report_passes_its_own_audit(tmp_path: Path):
    draft = Draft.open(tmp_path / "report", stage="report", key="demo", identity="ab" * 32, lineage={})
    summary = write_report(small(), draft)
    frame = audit_frame(draft)
    assert frame[["autoencoders", "autoencoders_expected", "external_references"]].to_numpy().tolist() == [[4, 4, 0]]
    assert [row["autoencoder"] for row in summary["rows"]] == small_site().autoencoders.sort_values(["k", "n"])[
        "autoencoder"
    ].to_list()
    artefact = draft.publish({"autoencoders": 4})
    pd.testing.assert_frame_equal(audit_frame(artefact), frame)
    text = summary_table(artefact.file("summary.json"))
    nmse = (
        study.metrics().query("autoencoder == 'topk-n256-k4' and metric == 'nmse' and variant == 'all'")["value"].item()
    )
    assert re.search(rf"^topk-n256-k4 +3\.99 +{nmse:.3f} ", text, flags=re.MULTILINE)
    assert "failed" in text.splitlines()[-1]


@pytest.mark.parametrize(
    "extra",
    [
        '<script>alert("x")</script>',
        '<img src="http://example.org/x.png">',
        '<a href="http://example.org">x</a>',
        "<style>@import 'x.css'</style>",
        '<p style="background: url(http://example.org/x.png)">x</p>',
        '<link rel="stylesheet">',
    ],
)
def test_audit_sees_what_leads_out_of_the_page(tmp_path: Path, extra: str):
    with Draft.open(tmp_path / "report", stage="report", key="demo", identity="ab" * 32, lineage={}) as draft:
        draft.write_json("summary.json", {"autoencoders": 0})
        draft.write_bytes("index.html", f'<p id="a"><a href="#a">http://is.text</a>{extra}</p>'.encode())
        assert audit_frame(draft)["external_references"].item() == 1
