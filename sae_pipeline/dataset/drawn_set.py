"""An evaluation set whose rows are draws from a Gaussian: what autoencoders of a null dataset are judged on."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.dataset.gaussian import Gaussian
from sae_pipeline.store import Artefact, Draft, PipelineError


class DrawnSet(EvaluationSet):
    """A real evaluation set with a draw in place of every eligible row; documents and positions stay what they are.

    The draws stand for normalised rows, and the autoencoders they are meant for have the normaliser `none`.
    """

    def __init__(self, source: Artefact | Draft, gaussian: Gaussian) -> None:
        super().__init__(source)
        self._gaussian = gaussian

    def rows(self, a: int, b: int) -> tuple[Tensor, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Held-out draws [rows, d] float32 at the eligible positions of contexts a to b; documents; positions."""
        context_r, position_r = np.nonzero(self.mask(a, b).numpy())
        first = int(self._rows_before[a])
        u_rd = self._gaussian.rows("held_out", first, first + len(position_r))
        return u_rd, self.document[a:b][context_r], position_r

    def residuals(self, a: int, b: int) -> Tensor:
        """Refused: a draw belongs to no token.

        Raises:
            PipelineError: always.
        """
        raise PipelineError(
            "a null dataset has no activations to splice into the subject; take the metric that asks for them out of "
            "evaluation.metrics (docs/nulls.md)"
        )

    @cached_property
    def _rows_before(self) -> npt.NDArray[np.int64]:
        """[n_contexts + 1] eligible rows before each context."""
        per_context = self.mask(0, self.n_contexts).sum(1).numpy()
        return np.concatenate([[0], np.cumsum(per_context, dtype=np.int64)])
