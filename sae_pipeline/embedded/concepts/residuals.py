"""Activations of a subject at the rows of a probe set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sae_pipeline.embedded.concepts.probe_set import ProbeSet
from sae_pipeline.store import Progress, silent
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject


def activations_at_places(
    subject: Subject, site: Site, probe_set: ProbeSet, *, batch: int = 32, progress: Progress = silent
) -> NDArray[np.float32]:
    """Activations at a site at each of `probe_set.places`, `[places, width]`.

    Raises:
        SubjectError: there is no such site, or the contexts do not fit the subject.
    """
    context_u, position_u, _ = probe_set.places
    x_ud = np.empty((context_u.size, subject.width(site)), np.float32)
    # Contexts of like length together, so that short ones are not computed with the padding of long ones.
    order = np.argsort(probe_set.length_c, kind="stable")
    for done in range(0, order.size, batch):
        chosen = order[done : done + batch]
        longest = int(probe_set.length_c[chosen].max())
        ids_bl = torch.from_numpy(probe_set.ids_cl[chosen, :longest].astype(np.int64))
        out_bld = subject.run(ids_bl, [site])[site].float().cpu().numpy()
        for context, out_ld in zip(chosen, out_bld, strict=True):
            first, last = np.searchsorted(context_u, [context, context + 1])
            x_ud[first:last] = out_ld[position_u[first:last]]
        progress.update(done + chosen.size, order.size, "contexts")
    return x_ud
