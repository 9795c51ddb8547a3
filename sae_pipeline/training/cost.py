"""What training costs, from a spec alone: the plan reckons with it, and the log measures by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sae_pipeline.autoencoders import recipe_of
from sae_pipeline.study import AutoencoderSpec

_SCORE_BYTES = 8 << 20  # a sparse step makes its scores in chunks of about this size


def flops_per_token(spec: AutoencoderSpec, d: int) -> float:
    """FLOPs of training on one row of width d (Gao et al. 2024, and `docs/training.md`): 2nd + 8dk where the step is
    sparse (scores of all latents; decoding, code gradient and both weight gradients at k of them), 12nd where it is
    dense. Optimiser, running average and AuxK are not counted: they are overhead by this measure."""
    if _is_sparse(spec):
        return 2.0 * spec.n * d + 8.0 * d * (spec.k or 0)
    return 12.0 * spec.n * d


def state_bytes(spec: AutoencoderSpec, d: int) -> int:
    """What a member in training holds between steps: fp32 weights, two moments and, where there is one, the running
    average of the weights; for each latent the tokens since it fired."""
    copies = 3 + (spec.ema is not None)
    return copies * _weight_bytes(spec, d) + 8 * spec.n


def working_bytes(spec: AutoencoderSpec, d: int) -> int:
    """What a member takes besides, at most, for a moment: in a step, or to average and write its weights at the end.

    The factors are fits to measured peaks on a CPU (docs/training.md).
    """
    rows, scores, weights = 20 * 4 * spec.batch * d, 4 * spec.batch * spec.n, _weight_bytes(spec, d)
    if _is_sparse(spec):
        step = rows + min(scores, _SCORE_BYTES) + weights // 4 + 64 * spec.batch * (spec.k or 0)
    else:
        step = rows + 2 * weights + round(_score_arrays(spec) * scores)
    return max(step, round(0.6 * step) + weights) if spec.ema is not None else step


def _score_arrays(spec: AutoencoderSpec) -> float:
    """Arrays of batch × n that a dense step holds; estimators of their own keep more of them for the way back."""
    return 8.0 if recipe_of(spec.recipe).encoder == "threshold" else 5.25


def _is_sparse(spec: AutoencoderSpec) -> bool:
    return spec.k is not None and recipe_of(spec.recipe).activation is not None


def _weight_bytes(spec: AutoencoderSpec, d: int) -> int:
    return 4 * (2 * spec.n * d + spec.n + d)


def groups_within(specs: Mapping[str, AutoencoderSpec], d: int, memory_bytes: int | None) -> Iterator[list[str]]:
    """Keys of the members to train at once, group after group, so that the states of each fit in the memory given.

    Members of equal batch size come together, since they can share a read of the data; else in the order given.
    """
    if memory_bytes is None:
        yield list(specs)
        return
    group, held = list[str](), 0
    for key in sorted(specs, key=lambda key: specs[key].batch):
        needed = state_bytes(specs[key], d)
        if group and held + needed > memory_bytes:
            yield group
            group, held = [], 0
        group.append(key)
        held += needed
    if group:
        yield group
