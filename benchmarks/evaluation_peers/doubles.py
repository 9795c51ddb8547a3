"""The fixture as both packages call it: a model with hooks, an autoencoder, a store of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

HOOK = "blocks.{}.hook_resid_post"


class Model:
    """A GPT-2 of transformers behind the calls that are made of a HookedTransformer, all at one hook."""

    def __init__(self, folder: Path, layer: int) -> None:
        self._model = GPT2LMHeadModel.from_pretrained(folder).eval()
        self._block = self._model.transformer.h[layer]

    @contextmanager
    def _hooked(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def hook(block: Any, given: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handle = self._block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, tokens: Tensor, return_type: str, loss_per_token: bool) -> tuple[Tensor, Tensor]:
        logits = self._model(tokens).logits
        losses = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return logits, losses

    def run_with_hooks(self, tokens: Tensor, fwd_hooks: list[tuple[str, Any]], **asked: Any) -> tuple[Tensor, Tensor]:
        ((_, change),) = fwd_hooks
        with self._hooked(lambda value: change(value, hook=None)):
            return self(tokens, **asked)

    def run_with_cache(self, tokens: Tensor, names_filter: list[str], **asked: Any) -> tuple[None, dict[str, Tensor]]:
        cache: dict[str, Tensor] = {}

        def keep(value: Tensor) -> Tensor:
            cache[names_filter[0]] = value
            return value

        with self._hooked(keep):
            self._model(tokens)
        return None, cache


class Sae:
    """A TopK autoencoder; `silent`: nothing is ever selected, so that it predicts its bias."""

    device = torch.device("cpu")

    def __init__(self, arrays: Any, silent: bool = False) -> None:
        self._p = {name: torch.from_numpy(arrays[name]) for name in ("W_enc", "b_enc", "W_dec", "b_pre")}
        self._k, self._silent = int(arrays["k"]), silent
        hook = HOOK.format(int(arrays["layer"]))
        place = {"hook_name": hook, "hook_layer": int(arrays["layer"]), "hook_head_index": None}
        self.cfg = SimpleNamespace(d_sae=len(arrays["W_enc"]), metadata=SimpleNamespace(**place), **place)

    def encode(self, x: Tensor) -> Tensor:
        pre = ((x - self._p["b_pre"]) @ self._p["W_enc"].T + self._p["b_enc"]).relu()
        values, indices = pre.topk(self._k)
        return torch.zeros_like(pre).scatter(-1, indices, 0 * values if self._silent else values)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self._p["W_dec"] + self._p["b_pre"]


class Store:
    """Tokens from the first on."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids, self._next = torch.from_numpy(ids), 0

    def get_batch_tokens(self, n: int) -> Tensor:
        batch = self._ids[self._next : self._next + n]
        self._next += n
        return batch
