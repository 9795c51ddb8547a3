"""Plain torch hooks: capture tensors, stop early, edit a tensor, skip a module. Each leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Side = Literal["input", "output"]


class Stopped(Exception):
    """The way out of a forward pass, raised by whatever captured the last tensor asked for; not an error."""


@contextmanager
def capturing(places: dict[Any, tuple[nn.Module, Side]]) -> Iterator[dict[Any, Tensor]]:
    """Capture tensors by key while the body runs a forward pass; leave it as soon as all of them are there.

    Args:
        places: per key the module and which of its sides; the first positional input, or the output.

    Yields:
        The captured tensors, filled in during the body.
    """
    captured: dict[Any, Tensor] = {}

    def store(key: Any, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{key}: the module gave a {type(value).__name__} where a tensor is expected")
        captured[key] = value
        if len(captured) == len(places):
            raise Stopped

    handles = [_observe(module, side, key, store) for key, (module, side) in places.items()]
    try:
        yield captured
    except Stopped:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _observe(module: nn.Module, side: Side, key: Any, store: Callable[[Any, Any], None]) -> Any:
    if side == "input":
        return module.register_forward_pre_hook(lambda _, args: store(key, args[0]))
    return module.register_forward_hook(lambda _, __, output: store(key, output))


@contextmanager
def editing(module: nn.Module, side: Side, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass a module's first input, or its output, through `edit` while the body runs."""
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def editing_sum(block: nn.Module, addend: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass a block's input + the output of `addend`, a module in it, through `edit` while the body runs.

    The sum has two readers, so no single hook reaches it. The input is copied, so that only the block's own skip
    connection holds it; when `addend` is done, the edited sum is written over the copy and the addend becomes zero:
    both readers get it, and value + 0 is exact. Hooks added later on either tensor would break that.
    """
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept[:] = [value.clone()]
        return kept[0]

    def put(added: Tensor) -> Tensor:
        total = kept.pop()
        total.copy_(edit(total + added))
        return torch.zeros_like(added)

    with editing(block, "input", keep), editing(addend, "output", put):
        yield


@contextmanager
def instead_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` in place of a module's own computation while the body runs; its hooks still see it."""
    module.forward = forward  # shadows the class's method
    try:
        yield
    finally:
        del module.forward


def pass_through(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """A block that does nothing."""
    return hidden
