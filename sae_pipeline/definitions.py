"""The composition root: the Dagster code location of one study (`SAE_STUDY`, default `demo`).

Every Dagster process imports this module, so it must stay light: torch, transformers, great_expectations and pyplot
are imported where they are used.
"""

from __future__ import annotations

import warnings

import dagster as dg

# Partitioned checks and multi-to-single mappings are marked preview and beta; every step process would repeat it.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from assets.automation import build_jobs  # noqa: E402
from assets.following import follow_corpora, follow_study  # noqa: E402
from assets.publishing import build_assets  # noqa: E402
from assets.retraining import continue_retrain, retrain_job, retrain_schedule  # noqa: E402
from assets.stages import stages_of  # noqa: E402
from resources import StudyGraph, SubjectResource, ValidatorResource  # noqa: E402


def build_definitions(graph: StudyGraph) -> dg.Definitions:
    """Assets, checks, jobs, sensors, schedule and resources of a study."""
    jobs, retrain = build_jobs(graph), retrain_job()
    return dg.Definitions(
        assets=build_assets(stages_of(graph), graph),
        jobs=[*jobs, retrain],
        schedules=[retrain_schedule(graph, retrain)],
        sensors=[follow_study(graph), follow_corpora(graph, jobs[0]), continue_retrain(graph, retrain, jobs)],
        resources={
            "study": graph,
            "subject": SubjectResource(),
            "validator": ValidatorResource(),
        },
        executor=dg.in_process_executor,
    )


defs = build_definitions(StudyGraph.load())
