"""Forward passes over whole contexts, and the rows they give: any range of a split's rows, at several sites at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sae_pipeline.activations.errors import ActivationOverflow
from sae_pipeline.activations.layout import TORCH_DTYPES, span_of
from sae_pipeline.activations.micro_batch import free_memory, halved, is_out_of_memory, record_micro_batch
from sae_pipeline.store import Draft
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Contexts


class Passes:
    """Runs the subject in micro-batches counted from the first context of a range, so that rows depend on it alone.

    Attributes:
        micro_batch: contexts of one pass; a pass that does not fit into memory halves it, which is recorded in the
            drafts, and the range is begun again.
    """

    def __init__(
        self, subject: Subject, contexts: Contexts, drafts: Collection[Draft], *, dtype: str, micro_batch: int
    ) -> None:
        self._subject, self._contexts, self._drafts, self._dtype = subject, contexts, drafts, TORCH_DTYPES[dtype]
        self.micro_batch = micro_batch

    def rows(self, rows: slice, sites: Sequence[Site], advance: Callable[[int], None]) -> dict[Site, Tensor]:
        """Activations [rows, width] of some rows at some sites, in the storage dtype, on the processor.

        Args:
            rows: a non-empty range of the split's rows.
            sites: where.
            advance: told the rows of each pass, and those of an attempt that failed with a minus.

        Raises:
            ActivationOverflow: a finite value does not fit into float16.
            ActivationError: not even a single context fits into memory.
        """
        while True:
            done = _Done(advance)
            try:
                return self._attempt(rows, sites, done)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                needed = str(error)
            done.undo()
            free_memory(self._subject.device)
            self.micro_batch = halved(self.micro_batch, needed)
            for draft in self._drafts:
                record_micro_batch(draft, self.micro_batch)

    def _attempt(self, rows: slice, sites: Sequence[Site], done: _Done) -> dict[Site, Tensor]:
        span = span_of(self._contexts.row_offsets, rows)
        widths = {site: self._subject.width(site) for site in sites}
        buffer = _Buffer(rows, span.skip, widths, self._dtype)
        for ids_cl, mask_cl in micro_batches(self._contexts, span.first, span.last, self.micro_batch):
            done.add(buffer.add(self._subject.run(ids_cl, sites), mask_cl))
        return buffer.rows


def micro_batches(contexts: Contexts, first: int, last: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids [c, L] and eligibility [c, L] of contexts `first` to `last`, `size` at a time; read in one go."""
    ids_cl = torch.from_numpy(contexts.ids(first, last))
    mask_cl = torch.from_numpy(contexts.row_mask(first, last))
    for start in range(0, last - first, size):
        yield ids_cl[start : start + size], mask_cl[start : start + size]


class _Done:
    """Rows made in one attempt."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._rows = advance, 0

    def add(self, rows: int) -> None:
        self._rows += rows
        self._advance(rows)

    def undo(self) -> None:
        self._advance(-self._rows)


class _Buffer:
    """A range of rows at several sites while it fills up."""

    def __init__(self, rows: slice, skip: int, widths: Mapping[Site, int], dtype: torch.dtype) -> None:
        self._first: int = rows.start
        self._n: int = rows.stop - rows.start
        self._skip, self._filled, self._dtype = skip, 0, dtype
        self.rows = {site: torch.empty(self._n, width, dtype=dtype) for site, width in widths.items()}

    def add(self, values: Mapping[Site, Tensor], mask_cl: Tensor) -> int:
        """Take over the eligible rows of a micro-batch that belong to this range; returns how many."""
        eligible = int(mask_cl.sum())
        start = min(self._skip, eligible)
        taken = min(eligible - start, self._n - self._filled)
        self._skip -= start
        for site, value_cld in values.items():
            all_rows = mask_cl.numel() == eligible  # the usual case needs no gather
            x_rd = value_cld.flatten(0, 1) if all_rows else value_cld[mask_cl.to(value_cld.device)]
            if taken:
                self._store(site, x_rd[start : start + taken], self.rows[site][self._filled : self._filled + taken])
        self._filled += taken
        return taken

    def _store(self, site: Site, x_rd: Tensor, stored_rd: Tensor) -> None:
        """Round rows to the storage dtype where they belong; what becomes infinite by it is an error."""
        stored_rd.copy_(x_rd)
        if self._dtype != torch.float16 or all(bool(extreme.isfinite()) for extreme in stored_rd.aminmax()):
            return
        x_rd = x_rd.cpu()
        lost = stored_rd.isinf() & x_rd.isfinite()
        if bool(lost.any()):
            raise ActivationOverflow(
                f"site {site}, rows from {self._first}: an activation of {float(x_rd[lost].abs().max()):.6g} "
                f"exceeds float16's largest value, {torch.finfo(torch.float16).max:.0f}; "
                "set activations.dtype to bfloat16 or float32"
            )
