"""Between the scenarios' arrays and PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from references import Arrays


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def set_parameters(parameters: dict[str, torch.Tensor], values: Arrays, transposed: tuple[str, ...] = ()) -> None:
    """Give a package's parameters, by our names, the scenario's values; `transposed` are kept as (D, N) there."""
    for name, parameter in parameters.items():
        parameter.data = tensor(values[name].T if name in transposed else values[name]).to(parameter.dtype)


def gradients(loss: torch.Tensor, parameters: dict[str, torch.Tensor], transposed: tuple[str, ...] = ()) -> Arrays:
    """Of a loss by a package's parameters, by our names; 0 where there is none."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    named = zip(parameters, found, strict=True)
    return {name: array(g.T if name in transposed else g) for name, g in named}
