"""The study's report: figures from tables, one static HTML page, a summary for the terminal."""

from sae_pipeline.report.audit import audit_frame
from sae_pipeline.report.densities import DensityHistogram
from sae_pipeline.report.figures import png_data_uri
from sae_pipeline.report.inputs import GATE_COLUMNS, STAGES, Facts, LineageNode, ReportInputs, SiteInputs
from sae_pipeline.report.matched import by_autoencoder, latent_densities, matched_table
from sae_pipeline.report.metric_figures import metric_figures
from sae_pipeline.report.page import render
from sae_pipeline.report.quantities import QUANTITIES, Quantity
from sae_pipeline.report.summary import summarise, summary_table, write_report

__all__ = [
    "GATE_COLUMNS",
    "QUANTITIES",
    "STAGES",
    "DensityHistogram",
    "Facts",
    "LineageNode",
    "Quantity",
    "ReportInputs",
    "SiteInputs",
    "audit_frame",
    "by_autoencoder",
    "latent_densities",
    "matched_table",
    "metric_figures",
    "png_data_uri",
    "render",
    "summarise",
    "summary_table",
    "write_report",
]
