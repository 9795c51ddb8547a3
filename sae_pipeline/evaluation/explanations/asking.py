"""Asking the subject and the encoder what latents do at the end of short excerpts: one queue for all latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.codes_cache import block_rows_of
from sae_pipeline.evaluation.explanations.corpus import IntArray
from sae_pipeline.evaluation.inputs import FloatArray
from sae_pipeline.store import Progress, silent
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject

Tokens = tuple[int, ...]
Forward = Callable[[Tensor], FloatArray]
"""From token ids [batch, length] to the sampled latents' activations at the last position [batch, slots]."""

TOKENS_AT_ONCE: Final = 8192


@dataclass
class Queue:
    """Answers requests (excerpt, slot) with the slot's activation at the excerpt's last token.

    Excerpts are run once whoever asks, in groups of equal length, so nothing is padded; their order is that of their
    content, so answers do not depend on the order of the requests.

    Attributes:
        forward: what runs a group.
        most_rows: the largest group.
        progress: told the excerpts done of one call.
        excerpts, tokens: run so far.
    """

    forward: Forward
    most_rows: int = 512
    progress: Progress = silent
    excerpts: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)

    def __call__(self, requests: Sequence[tuple[Tokens, int]]) -> FloatArray:
        """Activations [requests]."""
        if not requests:
            return np.zeros(0)
        distinct = sorted({tokens for tokens, _ in requests}, key=lambda tokens: (len(tokens), tokens))
        answers_es = np.concatenate([self.forward(torch.tensor(group)) for group in self._groups(distinct)])
        place = {tokens: i for i, tokens in enumerate(distinct)}
        excerpt_q = [place[tokens] for tokens, _ in requests]
        return np.asarray(answers_es[excerpt_q, [slot for _, slot in requests]])

    def _groups(self, distinct: Sequence[Tokens]) -> Iterator[Sequence[Tokens]]:
        lengths = np.array([len(tokens) for tokens in distinct])
        for length in np.unique(lengths).tolist():
            first, end = (int(np.searchsorted(lengths, length, side)) for side in ("left", "right"))
            step = min(self.most_rows, max(1, TOKENS_AT_ONCE // length))
            for start in range(first, end, step):
                group = distinct[start : min(start + step, end)]
                yield group
                self.excerpts += len(group)
                self.tokens += len(group) * length
                self.progress.update(start + len(group), len(distinct), "excerpts")


def subject_queue(
    subject: Subject, site: Site, autoencoder: Autoencoder, latents_s: IntArray, progress: Progress
) -> Queue:
    """A queue that runs the subject up to the site and encodes the last position alone."""
    latents = torch.from_numpy(latents_s)

    def forward(ids_bl: Tensor) -> FloatArray:
        x_bd = subject.run(ids_bl, [site])[site][:, -1].float().to(autoencoder.device)
        codes = autoencoder.encode(autoencoder.normaliser.normalise(x_bd)[0])
        z_bs = codes.dense(autoencoder.config.n)[:, latents.to(autoencoder.device)]
        return np.asarray(z_bs.double().cpu().numpy())

    return Queue(forward, block_rows_of(autoencoder.config.n), progress)
