"""Plain torch hooks: capture tensors, stop early, put a tensor in, skip a module. Each leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["input", "output"]


class Stopped(Exception):
    """The way out of a forward pass, raised by the hook that captured the last tensor asked for; not an error."""


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
def replacing(module: nn.Module, side: Side, value: Tensor) -> Iterator[None]:
    """Put `value` in place of a module's first input or of its output while the body runs."""
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (value, *args[1:]))
    else:
        handle = module.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        handle.remove()


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
