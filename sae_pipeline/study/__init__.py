"""Studies: one YAML file, validated; keys of sites and autoencoders; identities."""

from sae_pipeline.study.autoencoder_spec import AutoencoderSpec, expand
from sae_pipeline.study.data import ActivationsConfig, DatasetConfig
from sae_pipeline.study.identity import VERSIONS, canonical_json, identity_of, lineage_record
from sae_pipeline.study.keys import WHERE, Site, autoencoder_key, resolve_site
from sae_pipeline.study.load import StudyError, load_study
from sae_pipeline.study.models import (
    Autoencoders,
    Corpus,
    EvaluationConfig,
    Gates,
    ScalingConfig,
    SiteConfig,
    Study,
    SubjectConfig,
    TokensConfig,
)
from sae_pipeline.study.nulls import NULL, null_control
from sae_pipeline.study.parts import Part
from sae_pipeline.study.probing import EMBEDDED_TASKS, PROBES, probe_tasks
from sae_pipeline.study.siblings import STABILITY, siblings
from sae_pipeline.study.training import Stop, StopRule, TrainingConfig

__all__ = [
    "EMBEDDED_TASKS",
    "NULL",
    "PROBES",
    "STABILITY",
    "VERSIONS",
    "WHERE",
    "ActivationsConfig",
    "AutoencoderSpec",
    "Autoencoders",
    "Corpus",
    "DatasetConfig",
    "EvaluationConfig",
    "Gates",
    "Part",
    "ScalingConfig",
    "Site",
    "SiteConfig",
    "Stop",
    "StopRule",
    "Study",
    "StudyError",
    "SubjectConfig",
    "TokensConfig",
    "TrainingConfig",
    "autoencoder_key",
    "canonical_json",
    "expand",
    "identity_of",
    "lineage_record",
    "load_study",
    "null_control",
    "probe_tasks",
    "resolve_site",
    "siblings",
]
