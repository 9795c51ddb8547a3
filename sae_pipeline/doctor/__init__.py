"""Is this machine fit for the pipeline? Checks that say what they found and, if it is not well, what to do."""

from sae_pipeline.doctor.check import Check, Level, examine
from sae_pipeline.doctor.folders import dagster_home, disk, file_locks, publishing
from sae_pipeline.doctor.machine import browser, memory, processor, torch_devices
from sae_pipeline.doctor.packages import constraints, dagster_release, python_version, requirements
from sae_pipeline.doctor.reach import hub

__all__ = [
    "Check",
    "Level",
    "browser",
    "constraints",
    "dagster_home",
    "dagster_release",
    "disk",
    "examine",
    "file_locks",
    "hub",
    "memory",
    "processor",
    "publishing",
    "python_version",
    "requirements",
    "torch_devices",
]
