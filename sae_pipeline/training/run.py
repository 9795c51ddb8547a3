"""One member in training: its state between steps, its checkpoint, and what it leaves behind."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder, config_of, initialise, recipe_of, settings_of
from sae_pipeline.dataset import Normaliser, Statistics
from sae_pipeline.kernels import Objective, Optimiser, Parameters, TrainState, train_step
from sae_pipeline.store import Draft, PipelineError
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training import checkpoint
from sae_pipeline.training.held_out import measure
from sae_pipeline.training.log import Log, is_logged
from sae_pipeline.training.resample import resample
from sae_pipeline.training.schedule import learning_rate
from sae_pipeline.training.target import SparsityWeight

LOG, DONE = "training.parquet", "training.json"
MAX_BAD_STEPS = 10  # non-finite steps in a row before a run counts as diverged
EXPLODED = 100.0  # times worse than predicting the mean, and than its own first row

Status = Literal["running", "finished", "stopped", "diverged"]


class TrainingData(Protocol):
    """What training reads of a dataset."""

    @property
    def normaliser(self) -> Normaliser:
        """The normaliser its rows went through."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Moments of its rows."""
        ...


@dataclass(frozen=True)
class Member:
    """One autoencoder to train, the draft that receives it, and the parent that a finetuned one starts from."""

    spec: AutoencoderSpec
    draft: Draft
    parent: Autoencoder | None = None


@dataclass(frozen=True)
class Outcome:
    """How a member ended.

    status: "finished" (files written), "stopped" (checkpoint written) or "diverged" (nothing written, see `error`).
    figures: for a finished member the content of its training.json.
    """

    status: Status
    step: int
    tokens: int
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def check(spec: AutoencoderSpec) -> None:
    """Refuse a spec that cannot be trained; PipelineError saying what to change."""
    settings_of(spec, d=1)
    if spec.steps < 1:
        raise PipelineError(f"autoencoder {spec.key}: {spec.tokens} tokens do not fill one batch of {spec.batch}")


class Run:
    """A member between its first step and its end; opening one resumes its draft's checkpoint."""

    def __init__(self, member: Member, data: TrainingData, device: torch.device, threads: int) -> None:
        check(member.spec)
        self.spec, self.draft, self.normaliser = member.spec, member.draft, data.normaliser
        self.threads = threads  # of its arithmetic: they can change its bits, so a resumed run keeps those it had
        self.step, self.skipped_steps, self.bad_steps, self.resampled, self.train_s = 0, 0, 0, 0, 0.0
        self.status: Status = "running"
        self.error: str | None = None
        self.figures: dict[str, Any] = {}
        self.recipe = recipe_of(self.spec.recipe)
        self.optimiser = Optimiser(self.spec.adam_betas, self.spec.adam_eps, self.spec.ema, self.spec.grad_clip)
        self.objective = _objective(self.spec, data)
        median_d = torch.from_numpy(data.statistics.geometric_median)
        if self.recipe.trains is None:
            start = initialise(self.spec, data.normaliser, median_d, loss_scale=self.objective.loss_scale)
        else:
            start = self.recipe.start(_parent(member, data), settings_of(self.spec, data.normaliser.d), 1.0)
        self.first_extra = start.extra
        self.resample_steps = {max(1, round(share * self.spec.steps)) for share in self.spec.resample or ()}
        self.state = TrainState.start(start.map(lambda t: t.to(device)), average=self.spec.ema is not None)
        self.l1 = SparsityWeight(self.spec, device)
        self.log = Log(torch.zeros(5, dtype=torch.float64, device=device))
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._resume()

    @property
    def tokens(self) -> int:
        """Rows seen so far."""
        return self.step * self.spec.batch

    def advance(self, x_bd: Tensor, waited_s: float) -> None:
        """Train on the batch of step `self.step`; `waited_s` is how long it took to come."""
        started = time.perf_counter()
        lr = learning_rate(self.spec, self.step)
        losses = train_step(self.state, x_bd, self.objective, self.optimiser, lr=lr, l1=self.l1.at(self.step))
        if losses is not None:
            self.l1.observe(self.step, losses.l0)
        self.step += 1
        self.log.tick(len(x_bd), waited_s)
        if losses is None:
            self.bad_steps += 1
        else:
            self.bad_steps = 0
            self.log.add(losses)
        if self.step in self.resample_steps:
            seed = self.spec.seed * self.spec.steps + self.step
            self.resampled += resample(self.state, x_bd, self.objective, self.optimiser, self.first_extra, seed)
        if self.bad_steps >= MAX_BAD_STEPS:
            self._diverge(f"{MAX_BAD_STEPS} steps in a row were not finite")
        elif is_logged(self.step, self.spec.steps):
            self._write_row(lr)
        self.train_s += time.perf_counter() - started

    def save_if_due(self, every_s: float) -> None:
        """Checkpoint if the last one is `every_s` seconds old."""
        if time.monotonic() - self._saved_at >= every_s:
            self.save()

    def save(self) -> None:
        """Checkpoint, unless the one on disk is of this step."""
        if self._saved_step != self.step:
            self._count_skipped()
            names = ("step", "skipped_steps", "bad_steps", "resampled", "train_s", "threads")
            record = {name: getattr(self, name) for name in names}
            record |= {"updates": self.state.updates, "rows": self.log.rows, "l1": self.l1.value}
            checkpoint.write(self.draft, self._tensors(), record)
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def finish(self, held_out_xd: Tensor | None) -> None:
        """Write the autoencoder and its log into the draft and drop the checkpoint.

        What is saved is the running average of the weights where the spec has one (Gao et al. 2024 §A.5); `nmse` and
        `nmse_last` are the held-out figures of the saved and of the last weights.
        """
        last = self.state.params
        saved = last
        if self.spec.ema is not None:
            saved = self.state.averaged(self.spec.ema, unit_rows=self.recipe.unit_rows)
        self.figures = self._figures(saved, last, held_out_xd)
        for name, data in self._autoencoder(saved, self.figures).to_files().items():
            self.draft.write_bytes(name, data)
        self.draft.write_bytes(LOG, self.log.to_parquet())
        self.draft.write_json(DONE, self.figures)
        self.draft.remove(checkpoint.NAME)
        self.status = "finished"

    def outcome(self) -> Outcome:
        """How the member stands now."""
        status: Status = "stopped" if self.status == "running" else self.status
        return Outcome(status, self.step, self.tokens, self.figures, self.error)

    def _figures(self, saved: Parameters, last: Parameters, held_out_xd: Tensor | None) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "weights": "last" if saved is last else f"average over steps, decay {self.spec.ema}",
            "steps": self.step,
            "tokens": self.tokens,
            "skipped_steps": self.skipped_steps,
            "train_s": self.train_s,
            "l1": self.l1.value,
            "resampled": self.resampled,
            "train": {name: self.log.rows[-1][name] for name in ("nmse", "l0", "dead")},
        }
        if held_out_xd is not None:
            figures |= asdict(measure(self._autoencoder(saved, {}), held_out_xd))
            figures["nmse_last"] = measure(self._autoencoder(last, {}), held_out_xd).nmse
        return figures

    def _autoencoder(self, parameters: Parameters, figures: dict[str, Any]) -> Autoencoder:
        provenance = {
            "key": self.spec.key,
            "identity": self.draft.identity,
            "lineage": self.draft.lineage,
            "spec": self.spec.model_dump(mode="json"),
            "training": figures,
            "torch": torch.__version__,
            "threads": self.threads,
            "matmul_precision": torch.get_float32_matmul_precision(),
        }
        config = config_of(self.spec, self.normaliser.d)
        return Autoencoder(config, self.recipe.fold(parameters), self.normaliser, provenance)

    def _count_skipped(self) -> None:
        """A GPU step does not say on the spot that it was skipped; the device's count of those applied does."""
        self.skipped_steps = self.step - self.state.updates

    def _write_row(self, lr: float) -> None:
        self._count_skipped()
        dead = float(self.state.fired.dead(self.spec.dead_after_tokens).double().mean())
        row = self.log.write(step=self.step, tokens=self.tokens, dead=dead, lr=lr, skipped_steps=self.skipped_steps)
        last_finite = max((r["step"] for r in self.log.rows if math.isfinite(r["nmse"])), default=0)
        limit = EXPLODED * max([1.0] + [first["nmse"] for first in self.log.rows[:1] if math.isfinite(first["nmse"])])
        if row["nmse"] > limit:
            self._diverge(f"the training NMSE rose to {row['nmse']:.3g}")
        elif self.step - last_finite >= MAX_BAD_STEPS:
            self._diverge(f"{MAX_BAD_STEPS} steps in a row or more were not finite")
        elif not all(bool(tensor.isfinite().all()) for tensor in self.state.params.named().values()):
            self._diverge("a parameter is not finite")

    def _diverge(self, cause: str) -> None:
        self.status = "diverged"
        self.error = (
            f"autoencoder {self.spec.key} diverged at step {self.step}: {cause}; lower its lr ({self.spec.lr:.3g}), "
            "lengthen the warm-up or set grad_clip"
        )

    def _tensors(self) -> dict[str, Tensor]:
        return self.state.tensors() | {"log_sums": self.log.sums, "l0_sum": self.l1.l0_sum}

    def _resume(self) -> None:
        if self.draft.exists(DONE):
            self.figures = self.draft.read_json(DONE)
            self.step, self.status = int(self.figures["steps"]), "finished"
            self.draft.remove(checkpoint.NAME)  # a kill may have come between the last file and this
        elif self.draft.exists(checkpoint.NAME):
            record = checkpoint.read(self.draft, self._tensors())
            self.state.updates, self.log.rows = record.pop("updates"), record.pop("rows")
            self.l1.value = record.pop("l1")
            for name, value in record.items():
                setattr(self, name, value)
            self._saved_step = self.step


def _objective(spec: AutoencoderSpec, data: TrainingData) -> Objective:
    variance = data.statistics.total_variance
    if not (math.isfinite(variance) and variance > 0):
        raise PipelineError(f"the dataset's total variance is {variance}: its rows do not vary, nothing can be learned")
    recipe, settings = recipe_of(spec.recipe), settings_of(spec, data.normaliser.d)
    return Objective(
        recipe.activation(settings) if recipe.activation else None,
        1.0 / variance,
        spec.auxk_k or 0,
        spec.auxk_alpha,
        spec.dead_after_tokens,
        recipe.forward(settings) if recipe.forward else None,
        recipe.unit_rows,
        recipe.trains,
    )


def _parent(member: Member, data: TrainingData) -> Parameters:
    """Parameters of the parent, as they are to be trained on; PipelineError if they do not fit."""
    parent, key = member.parent, member.spec.key
    if parent is None:
        raise PipelineError(
            f"autoencoder {key}: recipe {member.spec.recipe!r} starts from another autoencoder; give it"
        )
    if parent.config.k is not None:
        raise PipelineError(f"autoencoder {key}: its parent has a TopK, which no scale of a latent leaves as it is")
    if (parent.config.n, parent.normaliser) != (member.spec.n, data.normaliser):
        raise PipelineError(
            f"autoencoder {key}: its parent has n = {parent.config.n} and {parent.normaliser}, not {member.spec.n} "
            f"and the dataset's {data.normaliser}"
        )
    return parent.parameters.map(torch.Tensor.clone)
