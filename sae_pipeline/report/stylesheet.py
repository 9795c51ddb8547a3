"""The page's style: quiet, readable on a laptop, light and dark."""

from sae_pipeline.report.figures.style import dark_variables

_STYLE = """
:root { --ink: #1f2430; --muted: #5f6875; --rule: #dfe3e8; --paper: #fffffe; --wash: #f5f6f8; --link: #1f5fa8;
  --good: #1a7f4b; --warn: #a35b00; --bad: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --muted: #9aa3b0; --rule: #343b46; --paper: #14171c; --wash: #1c2027; --link: #8ab8f0;
    --good: #5cc98f; --warn: #f0ad4e; --bad: #ff8a80; @DARK@ }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.layout { display: grid; grid-template-columns: 11.5rem minmax(0, 1fr); max-width: 1420px; margin: 0 auto; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 2.2rem .6rem 2rem 1.2rem;
  font-size: 13px; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav ol ol { padding-left: .8rem; border-left: 1px solid var(--rule); margin: .15rem 0 .4rem .1rem; }
nav a { color: var(--muted); text-decoration: none; display: block; padding: .14rem 0; overflow-wrap: anywhere; }
nav a:hover { color: var(--ink); }
main { padding: 2rem 2rem 4rem 1.2rem; min-width: 0; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 52rem; }
.lead, figcaption, .note { color: var(--muted); }
.note, figcaption { font-size: 13px; max-width: 52rem; }
a { color: var(--link); }
code { font: 12px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.8rem, 1fr)); gap: .6rem; margin: 1.1rem 0; }
.tile { background: var(--wash); border-radius: 8px; padding: .6rem .8rem; min-width: 0; }
.tile b { display: block; font-size: 1.3rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.tile b.text { font-size: .92rem; line-height: 1.77; }
.tile span { color: var(--muted); font-size: 12.5px; display: block; line-height: 1.35; }
ul.sense { list-style: none; padding: 0; margin: .8rem 0 1.2rem; }
ul.sense li { padding: .1rem 0; }
ul.sense b { display: inline-block; min-width: 5.2rem; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1rem 1.6rem; }
figure { margin: .4rem 0 1rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.35; }
th, td { padding: .26rem .42rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; border-bottom: 1.5px solid var(--muted); vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
tr.first > * { border-top: 2px solid var(--rule); padding-top: .5rem; }
tbody tr:hover > * { background: var(--wash); }
td.num, td.half { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.half { color: var(--muted); padding-left: 0; font-size: 11.5px; text-align: left; }
thead th.num { text-align: right; }
thead th[colspan] { text-align: center; }
.interval.stacked { display: block; }
.interval, .where { color: var(--muted); font-size: 11.5px; }
td.law, td.limit, td.id { white-space: nowrap; }
tr.rival { color: var(--muted); }
td.missing { color: var(--muted); cursor: help; }
td[title], th[title] { cursor: help; }
.verdict { font-weight: 600; }
.verdict.passed { color: var(--good); } .verdict.warning { color: var(--warn); } .verdict.failed { color: var(--bad); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1.6rem;
  margin: .5rem 0 1rem; }
dl.facts > div { display: flex; justify-content: space-between; gap: 1rem; padding: .26rem 0;
  border-bottom: 1px solid var(--rule); font-size: 13px; }
dl.facts dt { color: var(--muted); }
dl.facts dd { margin: 0; flex: none; max-width: 60%; text-align: right; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--link); font-size: 13.5px; margin: .3rem 0; }
.chain svg { width: 100%; height: auto; max-width: 1100px; margin: .4rem 0 .6rem; display: block; }
.chain rect { fill: var(--wash); stroke: var(--muted); stroke-width: 1; }
.chain text { text-anchor: middle; fill: var(--ink); font-size: 12px; }
.chain .name { font-weight: 600; font-size: 14.5px; }
.chain .id { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11.5px; }
.chain .small { fill: var(--muted); font-size: 11.5px; }
.chain .empty { opacity: .45; }
.chain .arrow { fill: none; stroke: var(--muted); stroke-width: 1.5; stroke-linecap: round; stroke-linejoin: round; }
footer { margin-top: 3rem; }
@media (max-width: 1050px) {
  .layout { display: block; } nav { position: static; max-height: none; padding: 1.2rem 1.4rem 0; }
  nav ol { columns: 2; } nav ol ol { columns: 1; } main { padding: 1rem 1.4rem 3rem; }
}
@media print {
  nav { display: none; } .layout { display: block; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def stylesheet() -> str:
    """CSS of the page, with the dark colours of the figures."""
    return _STYLE.replace("@DARK@", dark_variables()).strip()
