"""The training loop: a small language model on CPU, a checkpoint that resumes bit for bit, progress."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_pipeline.embedded.bpe import END_OF_TEXT_ID
from sae_pipeline.embedded.plan import Plan, batch_at, first_positions
from sae_pipeline.store import PipelineError, Progress, silent
from sae_pipeline.store.atomic import replace

CHECKPOINT = "checkpoint.pt"


def new_model(plan: Plan) -> Any:
    """A randomly initialised causal language model of the plan's architecture and size, without dropout, seeded."""
    torch.manual_seed(plan.seed)
    return _BUILDERS[plan.architecture](plan)


def _gpt2(plan: Plan) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=plan.vocab_size,
        n_positions=plan.n_positions,
        n_embd=plan.d_model,
        n_layer=plan.n_layers,
        n_head=plan.n_heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own formula in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    return GPT2LMHeadModel(config)


def _llama(plan: Plan) -> Any:
    """RMSNorm, rotary positions, and a gated MLP of 8/3 d_model so that it has as many weights as GPT-2's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=plan.vocab_size,
        max_position_embeddings=plan.n_positions,
        hidden_size=plan.d_model,
        intermediate_size=round(plan.d_model * 8 / 3 / 8) * 8,
        num_hidden_layers=plan.n_layers,
        num_attention_heads=plan.n_heads,
        num_key_value_heads=plan.n_heads,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    return LlamaForCausalLM(config)


_BUILDERS = {"gpt2": _gpt2, "llama": _llama}


def token_losses(model: Any, ids_bt: Tensor, first_b: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of every token but the first: `[b, t] -> [b, t - 1]`.

    `first_b` is the position of each context's first token; 0 without it.
    """
    inputs_bt, targets_bt = ids_bt[:, :-1], ids_bt[:, 1:]
    positions_bt = None if first_b is None else first_b[:, None] + torch.arange(inputs_bt.shape[1])
    logits_btv = model(input_ids=inputs_bt, position_ids=positions_bt, use_cache=False).logits
    losses_r = cross_entropy(logits_btv.float().flatten(0, 1), targets_bt.flatten(), reduction="none")
    return losses_r.view_as(targets_bt)


def _optimiser(model: Any, plan: Plan) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, fused=True)


def train_model(
    plan: Plan,
    stream: NDArray[np.integer],
    out_dir: Path,
    *,
    fingerprint: str,
    checkpoint_every_s: float = 60.0,
    stop_after: int | None = None,
    progress: Progress = silent,
) -> Any | None:
    """Train, resuming from `out_dir/checkpoint.pt` if it is there; None if stopped early.

    `fingerprint` names the corpus; a checkpoint of another plan, corpus or thread count is refused. The weights are
    bit-equal however often the run was interrupted, at the same number of threads. `stop_after` ends the run, with a
    checkpoint, before that step.
    """
    model = new_model(plan)
    optimiser = _optimiser(model, plan)
    identity = {"plan": plan.to_json(), "corpus": fingerprint, "threads": torch.get_num_threads()}
    first = _restore(out_dir / CHECKPOINT, model, optimiser, identity)
    saved_at = time.monotonic()
    for step in range(first, plan.all_steps):
        if step == stop_after:
            _save(out_dir / CHECKPOINT, model, optimiser, identity, step)
            return None
        if time.monotonic() - saved_at > checkpoint_every_s:
            _save(out_dir / CHECKPOINT, model, optimiser, identity, step)
            saved_at = time.monotonic()
        loss = _step(model, optimiser, plan, stream, step)
        progress.update((step + 1) * plan.batch_tokens, plan.tokens, "tokens", step=step + 1, loss=loss)
    _save(out_dir / CHECKPOINT, model, optimiser, identity, plan.all_steps)
    return model.eval()


def _step(model: Any, optimiser: torch.optim.AdamW, plan: Plan, stream: NDArray[np.integer], step: int) -> float:
    ids_bt, first_b = (torch.from_numpy(array) for array in (batch_at(stream, plan, step), first_positions(plan, step)))
    for group in optimiser.param_groups:
        group["lr"] = plan.lr_at(step)
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bfloat16"):
        loss = token_losses(model, ids_bt, first_b).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.grad_clip)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


def _save(path: Path, model: Any, optimiser: torch.optim.AdamW, identity: dict[str, Any], step: int) -> None:
    buffer = io.BytesIO()
    state = {"identity": identity, "step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state, buffer)
    replace(path, buffer.getvalue())


def _restore(path: Path, model: Any, optimiser: torch.optim.AdamW, identity: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["identity"] != identity:
        raise PipelineError(
            f"{path} belongs to another plan, corpus or thread count; delete it or choose another --out"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
