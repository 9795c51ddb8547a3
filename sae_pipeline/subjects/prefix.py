"""The first positions of a context, run once: their keys and values, for any number of continuations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sae_pipeline.subjects.hooks import Stopped


@dataclass(frozen=True)
class Prefix:
    """What later positions read of earlier ones, as `Subject.prefix` made it.

    Attributes:
        length: positions.
        keys_values: by layer, keys and values [1, heads, length, d_head]; layers before the site have none.
    """

    length: int
    keys_values: Mapping[int, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, recorded: Cache, length: int) -> Prefix:
        """From the cache that a pass over the prefix filled."""
        layers = {i: (layer.keys, layer.values) for i, layer in enumerate(recorded.layers) if layer.is_initialized}
        return cls(length, layers)

    def options(self, new: int, n_layers: int, device: torch.device) -> dict[str, Any]:
        """What a pass over any number of contexts, of `new` further positions each, is given to follow the prefix."""
        layers = [_PrefixLayer(self.length, self.keys_values.get(i)) for i in range(n_layers)]
        positions_1l = torch.arange(self.length, self.length + new, device=device)[None]
        return {"use_cache": True, "past_key_values": Cache(layers=layers), "position_ids": positions_1l}


class Recorder(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """An empty cache that keeps every position of every layer, also of those with a sliding window: masks see to it.

    With the last layer's keys and values it stops the pass: what that layer makes of them no later position reads.
    """

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self._last = n_layers - 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep them; raise Stopped if they are the last layer's."""
        keys, values = super().update(key_states, value_states, layer_idx)
        if layer_idx == self._last:
            raise Stopped
        return keys, values


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Puts the prefix before a batch's own keys and values, and keeps nothing of the batch."""

    def __init__(self, length: int, keys_values: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self._length, self._keys_values = length, keys_values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, heads, length + new, d_head]."""
        assert self._keys_values is not None  # a layer that runs now has run over the prefix
        keys, values = (
            torch.cat([kept.expand(len(new), -1, -1, -1), new], dim=-2)
            for kept, new in zip(self._keys_values, (key_states, value_states), strict=True)
        )
        return keys, values

    def get_seq_length(self) -> int:
        """Positions before the batch's own; masks are made from it."""
        return self._length
