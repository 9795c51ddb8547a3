"""The report of a study: one static HTML page that needs nothing else, neither scripts nor files nor a network."""

from collections.abc import Sequence

import pandas as pd

from sae_pipeline.report import figures
from sae_pipeline.report.chain import chain
from sae_pipeline.report.formatting import measured, number
from sae_pipeline.report.gates import gate_table, tally
from sae_pipeline.report.html import Markup, join, tag
from sae_pipeline.report.inputs import STAGES, ReportInputs, SiteInputs
from sae_pipeline.report.matched import matched_table
from sae_pipeline.report.sections import Topic, absent, drawn, site_topics
from sae_pipeline.report.sense import best, sense
from sae_pipeline.report.stylesheet import stylesheet
from sae_pipeline.report.tables import cell, column, facts_table, lineage_table, table

_LONG_STAGE = 4


def render(inputs: ReportInputs) -> str:
    """The whole page as HTML: every text of the inputs is escaped, and the same inputs give the same text."""
    sections = _sections(inputs)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", inputs.title),
        tag("style", Markup(stylesheet())),
    )
    body = tag("div", tag("nav", _contents(sections), aria_label="Contents"), _main(inputs, sections), class_="layout")
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _sections(inputs: ReportInputs) -> list[tuple[Topic, list[Topic]]]:
    """Sections with their subsections. The topics of a single site are sections of their own."""
    sections: list[tuple[Topic, list[Topic]]] = [(Topic("lineage", "Lineage", _lineage(inputs)), [])]
    for place, site in enumerate(inputs.sites):
        topics = site_topics(site, place)
        if len(inputs.sites) == 1:
            sections += [(topic, []) for topic in topics]
        else:
            sections.append((Topic(f"site-{place}", site.site, Markup()), topics))
    sections.append((Topic("gates", "Gates", _gates(inputs.gates)), []))
    sections.append((Topic("data", "Data", _data(inputs)), []))
    return [*sections, (Topic("provenance", "Provenance", facts_table(inputs.provenance)), [])]


def _contents(sections: Sequence[tuple[Topic, list[Topic]]]) -> Markup:
    def entry(topic: Topic, below: Sequence[Topic]) -> Markup:
        nested = tag("ol", *(entry(item, []) for item in below)) if below else None
        return tag("li", tag("a", topic.title, href=f"#{topic.slug}"), nested)

    summary = Topic("summary", "Summary", Markup())
    return tag("ol", entry(summary, []), *(entry(topic, below) for topic, below in sections))


def _main(inputs: ReportInputs, sections: Sequence[tuple[Topic, list[Topic]]]) -> Markup:
    def titled(topic: Topic, level: str, below: Sequence[Topic]) -> Markup:
        inner = (titled(item, "h3", []) for item in below)
        return tag("section", tag(level, topic.title, id=topic.slug), topic.body, *inner)

    return tag("main", _summary(inputs), *(titled(topic, "h2", below) for topic, below in sections))


def _summary(inputs: ReportInputs) -> Markup:
    counts = tally(inputs.gates)
    trained = sum(len(site.autoencoders) for site in inputs.sites)
    tiles = [_tile(number(value), label) for label, value in inputs.subject.items()]
    tiles.append(
        _tile(number(trained), f"autoencoders at {', '.join(site.site for site in inputs.sites) or 'no site'}")
    )
    tiles.append(_tile(str(counts["passed"]), f"checks passed, {counts['warning']} warned, {counts['failed']} failed"))
    several = len(inputs.sites) > 1
    parts = [join(tag("h3", site.site) if several else None, _site_summary(site)) for site in inputs.sites]
    if not parts:
        parts = [absent("No site has been worked on yet.")]
    null = tag("b", f" — null control: {inputs.null}") if inputs.null else None
    lead = tag("p", "Study ", tag("code", inputs.study), null, class_="lead")
    return tag("header", tag("h1", inputs.title, id="summary"), lead, tag("div", *tiles, class_="tiles"), *parts)


def _tile(value: str, label: str) -> Markup:
    return tag("div", tag("b", value, class_="text" if len(value) > 9 else None), tag("span", label), class_="tile")


def _site_summary(site: SiteInputs) -> Markup:
    """The best point of each recipe and k, and what a reader checks first."""
    matched = matched_table(site.metrics, site.autoencoders)
    if matched["nmse"].isna().all():
        return absent("No autoencoder has been evaluated yet.")
    statements = [
        tag(
            "li",
            tag("b", f"{held.held} of {held.of}"),
            held.statement,
            class_=None if held.held == held.of else "partly",
        )
        for held in sense(matched)
    ]
    head = ["lowest NMSE at", "autoencoder", column("L0"), column("NMSE", span=2), column("ΔCE (nats/token)", span=2)]
    rows = [_best_row(row) for _, row in best(matched, "nmse").iterrows()]
    return join(table(head, rows), tag("ul", *statements, class_="sense"))


def _best_row(row: "pd.Series[float]") -> Markup:
    cells = [cell(number(float(row["l0"])))]
    for name in ("nmse", "dce"):
        value, half = measured(float(row[name]), float(row[f"{name}_lo"]), float(row[f"{name}_hi"]))
        cells += [cell(value, title=str(row[f"{name}_note"])), cell(half, class_="half")]
    at = str(row["recipe"]) if pd.isna(row["k"]) else f"{row['recipe']}, k = {int(row['k'])}"
    return tag("tr", tag("th", at, scope="row"), tag("td", tag("code", str(row["autoencoder"]))), *cells)


def _lineage(inputs: ReportInputs) -> Markup:
    """The chain, a table of the stages that have few artefacts, and the long ones folded away."""
    by_stage = {stage: [node for node in inputs.lineage if node.stage == stage] for stage in STAGES}
    few = [node for nodes in by_stage.values() if len(nodes) <= _LONG_STAGE for node in nodes]
    folded = [
        tag("details", tag("summary", f"{number(len(nodes))} artefacts of {stage}"), lineage_table(nodes))
        for stage, nodes in by_stage.items()
        if len(nodes) > _LONG_STAGE
    ]
    return join(chain(inputs.lineage), lineage_table(few) if few else None, *folded)


def _gates(gates: pd.DataFrame) -> Markup:
    if gates.empty:
        return absent("No gate has been recorded.")
    note = (
        "An integrity check that fails blocks publication; a warning marks an odd but possible result. "
        "Checks that passed are gathered by stage, with the range of their values."
    )
    return join(tag("p", note, class_="note"), gate_table(gates))


def _data(inputs: ReportInputs) -> Markup:
    parts = [tag("h3", "Tokens"), facts_table(inputs.tokens)]
    if inputs.documents is not None and not inputs.documents.empty:
        caption = "Lengths of the documents of each split, in tokens."
        lengths = drawn(figures.document_lengths(inputs.documents), "documents", caption)
        parts.append(tag("div", lengths, class_="figures"))
    for place, site in enumerate(inputs.sites):
        parts += [tag("h3", site.site), facts_table(site.data)]
        if site.shards is not None and not site.shards.empty:
            norms, spread = figures.shard_norms(site.shards), figures.shard_spread(site.shards)
            parts.append(
                tag(
                    "div",
                    drawn(norms, f"norms-{place}", "Mean norm of the raw activations, by shard."),
                    drawn(spread, f"spread-{place}", "Spread of the raw activations, by shard."),
                    class_="figures",
                )
            )
    return join(*parts)
