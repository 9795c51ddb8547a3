"""The parts of a study as frozen, strict pydantic models: what one YAML file may say."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from sae_pipeline.study.agreement import check_agreement
from sae_pipeline.study.ahead import Budget, EvaluationSource, Retrain
from sae_pipeline.study.data import ActivationsConfig, DatasetConfig
from sae_pipeline.study.nulls import null_control
from sae_pipeline.study.parts import (
    EXECUTION_ONLY,
    Count,
    Counts,
    Name,
    Names,
    Part,
    Ratio,
    Ratios,
    Seed,
    Seeds,
)
from sae_pipeline.study.training import Stop, Switch, TrainingConfig


class SubjectShape(Part):
    """Sizes of a subject, written down so that `plan` works where the model cannot be reached."""

    architecture: str = "gpt2"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    n_layers: Count
    d_model: Count
    vocab_size: Count
    n_params: Count
    max_positions: Count


class SubjectConfig(Part):
    """The model under study: `embedded/<name>`, a local path, or a Hugging Face id.

    `weights: untrained` makes it the model's untrained twin, a null control (docs/nulls.md).
    """

    alias: Name = Field(json_schema_extra=EXECUTION_ONLY)
    id: str = Field(json_schema_extra=EXECUTION_ONLY)
    revision: str | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    weights: Literal["untrained"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    device: str = Field(default="auto", json_schema_extra=EXECUTION_ONLY)
    credentials: str | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    shape: SubjectShape | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)


class Corpus(Part):
    """One source of text: `stdlib`, a file, folder or glob, or `hf:<org>/<name>`."""

    name: Name
    source: str = Field(json_schema_extra=EXECUTION_ONLY)
    split: Literal["near_duplicate_cluster", "embedded_card"] = "near_duplicate_cluster"
    field: str = "text"
    subset: str | None = None
    revision: str | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    weight: Ratio = 1.0
    tokens: Count | None = None
    since: date | None = None


class SplitConfig(Part):
    """How documents are divided into training and held-out ones."""

    by: Literal["near_duplicate_cluster"] = "near_duplicate_cluster"
    jaccard: Annotated[float, Field(gt=0, lt=1)] = 0.5


class TokensConfig(Part):
    """Contexts: their length in tokens, the budgets in activation rows, and which positions never become rows.

    `per_context` draws, by seed, at most so many positions of each training context, so that the rows of a budget come
    from more text; evaluation sets keep all, since metrics splice whole contexts.
    """

    context: Annotated[Count, Field(ge=2)] = 64
    train: Count = 2_000_000
    held_out: Count = 200_000
    permute: Literal["contexts"] = "contexts"
    bos: Literal["document_start", "every_context", "none"] = "document_start"
    exclude: tuple[Literal["bos", "pad", "special"], ...] = ("pad",)
    per_context: Count | None = None
    split: SplitConfig = SplitConfig()

    @property
    def train_tokens(self) -> int:
        """Tokens of full contexts that hold the training budget: more than its rows where `per_context` thins them."""
        rows = self.context if self.per_context is None else min(self.per_context, self.context)
        return self.train if rows == self.context else -(-self.train // rows) * self.context


class SiteConfig(Part):
    """One site of the subject; `normaliser: auto` picks the default of its architecture and place."""

    normaliser: Literal["auto", "paper", "rms", "mean_norm", "layer_norm", "none"] = "auto"


class LearningRate(Part):
    """lr(n) = base · (n / at_n)^power (paper §3.3: the largest converging rate falls as 1/√n)."""

    base: Annotated[float, Field(gt=0)] = 2.0e-4
    at_n: Count = 16_384
    power: float = -0.5

    def at(self, n: int) -> float:
        """Learning rate for `n` latents."""
        return float(self.base * (n / self.at_n) ** self.power)


class Schedule(Part):
    """Linear warm-up in steps, then constant, then linear decay to zero over the last fraction of the steps."""

    warmup: Annotated[int, Field(ge=0)] = 0
    decay_last: Annotated[float, Field(ge=0, le=1)] = 0.0


class AuxK(Part):
    """Auxiliary loss for dead latents (paper §2.11); `k: d/2` follows the width of the site."""

    k: Count | Literal["d/2"] = "d/2"
    alpha: Ratio = 1 / 32


Beta = Annotated[float, Field(ge=0, lt=1)]


class AutoencoderDefaults(Part):
    """Training settings shared by the grids; any grid may override any of them."""

    batch: Count = 131_072
    tokens: Count = 2_000_000
    lr: LearningRate = LearningRate()
    schedule: Schedule = Schedule()
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    adam_eps: Annotated[float, Field(gt=0)] = 6.25e-10
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    init: Literal["tied", "independent"] = "tied"
    auxk: AuxK | None = AuxK()
    dead_after_tokens: Count | None = None
    resample: Ratios | None = None
    stop: Stop | None = None
    keep_before_decay: Switch = None
    l1_warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    seeds: Seeds = (0,)


class Grid(Part):
    """The product of its lists: one autoencoder per recipe × n × sparsity × seed, at the named sites (default all).

    A finetuning recipe names `parents` in place of n and sparsity: keys of autoencoders of the same site.
    """

    recipe: Name
    n: Counts | None = None
    parents: Names | None = None
    k: Counts | None = None
    l1: Ratios | None = None
    target_l0: Ratios | None = None
    sites: tuple[str, ...] | None = None
    tag: Name | None = None
    prefixes: tuple[Count, ...] | None = None
    options: dict[str, float] | None = None
    seeds: Seeds | None = None
    batch: Count | None = None
    tokens: Count | None = None
    lr: LearningRate | None = None
    schedule: Schedule | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    init: Literal["tied", "independent"] | None = None
    auxk: AuxK | Literal["off"] | None = None
    dead_after_tokens: Count | None = None
    resample: Ratios | None = None
    stop: Stop | None = None

    @model_validator(mode="after")
    def _sparsity(self) -> Grid:
        if self.parents is not None:
            for name in ("n", "k", "l1", "target_l0", "prefixes"):
                if getattr(self, name) is not None:
                    raise ValueError(f"grid {self.recipe!r}: {name} follows from its parents; leave it out")
            return self
        if self.n is None:
            raise ValueError(f"grid {self.recipe!r}: give n, or the parents of a finetuning recipe")
        if self.target_l0 is not None and (self.k is not None or self.l1 is not None):
            raise ValueError(f"grid {self.recipe!r}: target_l0 finds l1 by itself; give it without k and l1")
        if self.target_l0 is None and self.k is None and self.l1 is None:
            raise ValueError(f"grid {self.recipe!r}: give k, l1 or target_l0, as its recipe needs")
        return self


class Autoencoders(Part):
    """Defaults and grids."""

    defaults: AutoencoderDefaults = AutoencoderDefaults()
    grids: Annotated[tuple[Grid, ...], Field(min_length=1)]


class Bootstrap(Part):
    """Cluster bootstrap: the unit resampled and how often."""

    unit: Literal["document"] = "document"
    resamples: Count = 2000


SUITES: Final = {
    "core": ("reconstruction", "density", "downstream"),
    "full": (
        "reconstruction", "density", "downstream", "progressive", "concentration", "shrinkage", "ablation", "probes",
        "explanations", "examples", "antipodal", "stability", "context_length",
    ),
}  # fmt: skip
"""Metrics that a study may ask for by one word, each with its defaults."""


def _suite(name: str) -> dict[str, dict[str, Any]]:
    return {metric: {} for metric in SUITES[name]}


class EvaluationConfig(Part):
    """Held-out rows to evaluate on, the metrics with their parameters, the bootstrap, and controls beside them."""

    tokens: Count = 100_000
    bootstrap: Bootstrap = Bootstrap()
    metrics: dict[str, dict[str, Any]] = Field(default_factory=lambda: _suite("core"))
    sets: dict[Name, EvaluationSource] | None = None
    controls: tuple[Literal["gaussian_cov", "random_weights_subject"], ...] = ()

    @field_validator("metrics", mode="before")
    @classmethod
    def _by_one_word(cls, metrics: Any) -> Any:
        if not isinstance(metrics, str):
            return metrics
        if metrics not in SUITES:
            raise ValueError(f"{metrics!r} is no suite; write {' or '.join(SUITES)}, or list metrics")
        return _suite(metrics)

    @model_validator(mode="after")
    def _reconstruction_is_always_measured(self) -> EvaluationConfig:
        if "reconstruction" not in self.metrics:
            raise ValueError("evaluation.metrics: reconstruction must be among them; champions and laws need it")
        return self


class ScalingConfig(Part):
    """Which laws to fit to which targets, and how intervals and the hold-out check are made."""

    targets: tuple[Literal["nmse", "dce"], ...] = ("nmse", "dce")
    forms: tuple[Literal["L_N", "L_NK", "table"], ...] = ("L_N", "L_NK")
    irreducible: Literal["auto", "with", "without"] = "auto"
    intervals: Literal["profile", "bootstrap"] = "profile"
    hold_out: Literal["largest_n", "none"] = "largest_n"
    resamples: Count = 500


class Gates(Part):
    """Limits a person may move; integrity limits are fixed and always block."""

    dead: Annotated[float, Field(gt=0, le=1)] = 0.5
    nmse_max: Annotated[float, Field(gt=0, le=1)] = 1.0
    mean_l0_share: Annotated[float, Field(gt=0, le=1)] = 0.99


class ReportConfig(Part):
    """The static HTML page."""

    title: str | None = None
    compare_with: Literal["previous"] | None = None


class Study(Part):
    """One study: one subject, its corpora, sites, autoencoders, evaluation and laws. See `studies/` for examples."""

    study: Name = Field(json_schema_extra=EXECUTION_ONLY)
    seed: Seed = 0
    subject: SubjectConfig
    corpora: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    tokens: TokensConfig = TokensConfig()
    sites: dict[str, SiteConfig]
    activations: ActivationsConfig = ActivationsConfig()
    dataset: DatasetConfig = DatasetConfig()
    autoencoders: Autoencoders
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scaling: ScalingConfig = ScalingConfig()
    gates: Gates = Gates()
    retrain: Retrain | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    budget: Budget | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    report: ReportConfig = Field(default=ReportConfig(), json_schema_extra=EXECUTION_ONLY)

    @property
    def null(self) -> str | None:
        """What makes the study a null control, in words; None where it is none."""
        return null_control(self.subject.weights, self.dataset.null)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        check_agreement(self)
        return self
