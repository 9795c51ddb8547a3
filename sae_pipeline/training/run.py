"""One member in training: its state between steps, its checkpoint, and what it leaves behind."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder, config_of, initialise, recipe_of, settings_of
from sae_pipeline.kernels import Optimiser, Parameters, TrainState, train_step, ways
from sae_pipeline.study import StopRule
from sae_pipeline.training import checkpoint, milestones
from sae_pipeline.training.cost import flops_per_token
from sae_pipeline.training.ending import Ending
from sae_pipeline.training.extension import BEFORE_DECAY, last_constant_step, take_over
from sae_pipeline.training.held_out import measure
from sae_pipeline.training.log import Log, is_logged
from sae_pipeline.training.member import Member, Outcome, Status, TrainingData, check, objective_of, parent_of
from sae_pipeline.training.resample import resample
from sae_pipeline.training.schedule import learning_rate
from sae_pipeline.training.target import SparsityWeight

LOG, DONE, DIVERGED = "training.parquet", "training.json", "diverged.json"
MAX_BAD_STEPS = 10  # non-finite steps in a row before a run counts as diverged
EXPLODED = 100.0  # times worse than predicting the mean, and than its own first row


class Run:
    """A member between its first step and its end; opening one resumes its draft's checkpoint."""

    def __init__(
        self,
        member: Member,
        data: TrainingData,
        device: torch.device,
        threads: int,
        stop_if: StopRule | None = None,
    ) -> None:
        check(member.spec)
        self.spec, self.draft, self.normaliser = member.spec, member.draft, data.normaliser
        self.threads = threads  # of its arithmetic: they can change its bits, so a resumed run keeps those it had
        self.step, self.bad_steps, self.resampled, self.train_s = 0, 0, 0, 0.0
        self.status: Status = "running"
        self.error: str | None = None
        self.figures: dict[str, Any] = {}
        self.stop_if, self.ending = stop_if, Ending(self.spec, stop_if)
        self.recipe = recipe_of(self.spec.recipe)
        self.optimiser = Optimiser(self.spec.adam_betas, self.spec.adam_eps, self.spec.ema, self.spec.grad_clip)
        self.objective = objective_of(self.spec, data)
        median_d = torch.from_numpy(data.statistics.geometric_median)
        if self.recipe.trains is None:
            start = initialise(self.spec, data.normaliser, median_d, loss_scale=self.objective.loss_scale)
        else:
            start = self.recipe.start(parent_of(member, data), settings_of(self.spec, data.normaliser.d), 1.0)
        self.first_extra = start.extra
        self.resample_steps = {max(1, round(share * self.spec.steps)) for share in self.spec.resample or ()}
        self.state = TrainState.start(start.map(lambda t: t.to(device)), average=self.spec.ema is not None)
        self.l1 = SparsityWeight(self.spec, device)
        sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.log = Log(sums, flops_per_token(self.spec, data.normaliser.d))
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._resume()

    @property
    def tokens(self) -> int:
        """Rows seen so far."""
        return self.step * self.spec.batch

    @property
    def skipped_steps(self) -> int:
        """Steps that were not finite and so not applied; on a GPU, asking waits for the device."""
        return self.step - self.state.updates

    @property
    def steps(self) -> int:
        """Steps at which it ends, as far as is known."""
        return self.ending.steps

    def advance(self, x_bd: Tensor, waited_s: float) -> None:
        """Train on the batch of step `self.step`; `waited_s` is how long it took to come."""
        started = time.perf_counter()
        lr = learning_rate(self.spec, self.step, self.steps)
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
        elif is_logged(self.step, self.spec.steps) or self.step == self.steps:
            self._write_row(lr)
        self.train_s += time.perf_counter() - started

    def save_if_due(self, every_s: float) -> None:
        """Checkpoint if the last one is `every_s` seconds old."""
        if time.monotonic() - self._saved_at >= every_s:
            self.save()

    def save(self) -> None:
        """Checkpoint, unless the one on disk is of this step or the state is unsound: then the last sound one stays."""
        if self._saved_step != self.step and self._unsound(self.log.nmse) is None:
            checkpoint.write(self.draft, self._tensors(), self._record())
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def finish(self, held_out_xd: Tensor | None) -> None:
        """Write the autoencoder and its log into the draft and drop the checkpoint.

        What is saved is the running average of the weights where the spec has one (Gao et al. 2024 §A.5); `nmse` and
        `nmse_last` are the held-out figures of the saved and of the last weights.
        """
        last, saved = self.state.params, self._saved()
        self.figures = self._figures(saved, last, held_out_xd)
        if self.spec.milestones is not None:
            kept = [tokens for tokens in self.spec.milestones if tokens < self.tokens]
            milestones.write_table(self.draft, kept, self._milestone(saved, held_out_xd))
        for name, parts in self._autoencoder(saved, self.figures).to_files().items():
            self.draft.write_bytes(name, *parts)
        self.draft.write_bytes(LOG, self.log.to_parquet())
        self.draft.write_json(DONE, self.figures)
        self.draft.remove(checkpoint.NAME)
        self.status = "finished"

    def keep(self, held_out_xd: Tensor | None) -> None:
        """Keep what is asked for at this place: weights as they would be saved here, or the state before the decay."""
        if self.spec.keep_before_decay and self.step == last_constant_step(self.steps, self.spec.decay_last):
            checkpoint.write(self.draft, self._tensors(), self._record(), BEFORE_DECAY)
        if self.tokens in (self.spec.milestones or ()) and self.step < self.steps:
            saved = self._saved()
            figures = self._milestone(saved, held_out_xd)
            milestones.keep(self.draft, self._autoencoder(saved, figures), self.tokens)

    def outcome(self) -> Outcome:
        """How the member stands now."""
        status: Status = "stopped" if self.status == "running" else self.status
        return Outcome(status, self.step, self.tokens, self.figures, self.error)

    def _saved(self) -> Parameters:
        if self.spec.ema is None:
            return self.state.params
        return self.state.averaged(self.spec.ema, unit_rows=self.recipe.unit_rows)

    def _milestone(self, saved: Parameters, held_out_xd: Tensor | None) -> dict[str, Any]:
        figures = {"tokens": self.tokens, "step": self.step}
        if held_out_xd is None:
            return figures
        return figures | asdict(measure(self._autoencoder(saved, {}), held_out_xd))

    def _figures(self, saved: Parameters, last: Parameters, held_out_xd: Tensor | None) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "weights": "last" if saved is last else f"average over steps, decay {self.spec.ema}",
            "steps": self.step,
            "tokens": self.tokens,
            **self._end(),
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

    def _end(self) -> dict[str, Any]:
        """Why it ended where it did."""
        found = self.ending.converged_step
        converged = {} if found is None else {"converged_at_tokens": found * self.spec.batch}
        return {"budget_tokens": self.spec.steps * self.spec.batch, **converged}

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
            **ways(),
        }
        config = config_of(self.spec, self.normaliser.d)
        return Autoencoder(config, self.recipe.fold(parameters), self.normaliser, provenance)

    def _write_row(self, lr: float) -> None:
        dead = float(self.state.fired.dead(self.spec.dead_after_tokens).double().mean())
        self.ending.observe({"step": self.step, "nmse": self.log.nmse, "dead": dead})
        row = self.log.write(
            step=self.step,
            tokens=self.tokens,
            end_tokens=self.steps * self.spec.batch,
            dead=dead,
            lr=lr,
            skipped_steps=self.skipped_steps,
        )
        last_finite = max((r["step"] for r in self.log.rows if math.isfinite(r["nmse"])), default=0)
        if (cause := self._unsound(row["nmse"])) is not None:
            self._diverge(cause)
        elif self.step - last_finite >= MAX_BAD_STEPS:  # a GPU's step does not say on the spot that it was skipped
            self._diverge(f"{MAX_BAD_STEPS} steps in a row or more were not finite")
        else:
            self._give_up_if_hopeless()

    def _unsound(self, nmse: float) -> str | None:
        """What is wrong with the state, whose last steps had this mean training NMSE (NaN: none to go by)."""
        limit = EXPLODED * max([1.0] + [first["nmse"] for first in self.log.rows[:1] if math.isfinite(first["nmse"])])
        if nmse > limit:
            return f"the training NMSE rose to {nmse:.3g}"
        # By the extremes, which NaN spreads to: asking each value takes as much memory again as the parameters.
        extremes = [extreme for tensor in self.state.params.named().values() for extreme in tensor.aminmax()]
        if not bool(torch.stack(extremes).isfinite().all()):
            return "a parameter is not finite"
        return None

    def _diverge(self, cause: str) -> None:
        """End the member, and note it in the draft: the same spec would end in the same way again."""
        self.status = "diverged"
        self.error = (
            f"autoencoder {self.spec.key} diverged at step {self.step}: {cause}; lower its lr ({self.spec.lr:.3g}), "
            "lengthen the warm-up or set grad_clip"
        )
        self.draft.write_json(DIVERGED, {"step": self.step, "error": self.error})

    def _give_up_if_hopeless(self) -> None:
        if self.ending.hopeless is not None and self.step < self.steps:
            self.status = "hopeless"
            self.error = (
                f"autoencoder {self.spec.key} was given up at step {self.step}: {self.ending.hopeless}; change what it "
                "is trained with, or relax training.stop_if: it then goes on from its checkpoint"
            )

    def _record(self) -> dict[str, Any]:
        names = ("step", "bad_steps", "resampled", "train_s", "threads")
        record = {name: getattr(self, name) for name in names}
        return record | {"updates": self.state.updates, "rows": self.log.rows, "l1": self.l1.value}

    def _tensors(self) -> dict[str, Tensor]:
        return self.state.tensors() | {"log_sums": self.log.sums, "l0_sum": self.l1.l0_sum}

    def _resume(self) -> None:
        if self.draft.exists(DONE):
            self.figures = self.draft.read_json(DONE)
            self.step, self.status = int(self.figures["steps"]), "finished"
            self.draft.remove(checkpoint.NAME)  # a kill may have come between the last file and this
            return
        if self.draft.exists(DIVERGED):
            found = self.draft.read_json(DIVERGED)
            self.step, self.status = int(found["step"]), "diverged"
            self.error = f"{found['error']} (it did so in an earlier run; to try again, delete {self.draft.path})"
            return
        if self.spec.keep_before_decay and not self.draft.exists(checkpoint.NAME):
            take_over(self.draft, self.spec)
        if self.draft.exists(checkpoint.NAME):
            record = checkpoint.read(self.draft, self._tensors())
            self.state.updates, self.log.rows = record.pop("updates"), record.pop("rows")
            self.l1.value = record.pop("l1")
            for name, value in record.items():
                setattr(self, name, value)
            self._saved_step = self.step
            self.ending = Ending(self.spec, self.stop_if, self.log.rows)
            self._give_up_if_hopeless()
