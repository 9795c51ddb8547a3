"""How activations are stored and read: the parts `activations` and `dataset` of a study."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sae_pipeline.study.parts import EXECUTION_ONLY, Bytes, Count, Part

_STATISTICS_ROWS = 1_000_000


class Retain(Part):
    """Keep at most this many bytes of activation shards: made ahead of the trainer, consumed, evicted."""

    window: Bytes


class Outliers(Part):
    """Rows whose norm is more than this many times the median's: `flag` counts and shows them and keeps every row.

    The median is that of the first rows of the training split, measured once (`sae_pipeline.activations.outliers`).
    """

    norm_over_median: Annotated[float, Field(gt=1)] = 10.0
    action: Literal["drop", "flag"] = "flag"


class ActivationsConfig(Part):
    """How activations are stored: dtype, rows of a shard, contexts of one forward pass.

    `retain` bounds their bytes on the disk and changes no batch; `statistics_prefix` is the number of first rows that
    statistics and normaliser are made from, which stay on the disk (docs/activations.md). `codec` compresses shards.
    """

    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    shard_tokens: Count = 65_536
    micro_batch: Count = Field(default=64, json_schema_extra=EXECUTION_ONLY)
    retain: Literal["all", "none"] | Retain = Field(default="all", json_schema_extra=EXECUTION_ONLY)
    statistics_prefix: Count | None = None
    outliers: Outliers | None = None
    codec: Literal["none", "zstd", "blosc-lz4"] | None = None

    @property
    def statistics_rows(self) -> int | None:
        """First rows that statistics are made from; None: all. Where not all shards are retained there is a default."""
        if self.statistics_prefix is None and self.retain != "all":
            return _STATISTICS_ROWS
        return self.statistics_prefix

    def determining(self) -> dict[str, Any]:
        """With the default of `statistics_prefix`, where `retain` calls for it: it decides the normaliser."""
        prefix = {} if self.statistics_rows is None else {"statistics_prefix": self.statistics_rows}
        return super().determining() | prefix


_Switch = Annotated[Literal[True] | None, BeforeValidator(lambda on: on or None)]  # False is as if it were not there


class DatasetConfig(Part):
    """The read order: shards resident at once (mixed with each other) and rows drawn for the geometric median.

    `copy: true` keeps a normalised float32 copy of all rows. `null: gaussian_cov` puts draws from a Gaussian with the
    rows' mean and covariance in their place (docs/nulls.md).
    """

    resident_shards: Annotated[int, Field(ge=2)] = 4
    sample_rows: Count = 32_768
    copy_: _Switch = Field(default=None, alias="copy")
    null: Literal["gaussian_cov"] | None = None
