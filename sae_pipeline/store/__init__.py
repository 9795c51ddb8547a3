"""The ground floor: committed Zarr shards and published artefacts. See docs/format.md for the format."""

from sae_pipeline.store.array_format import decode_float32
from sae_pipeline.store.artefact import Artefact
from sae_pipeline.store.atomic import read_json, write_json_atomic
from sae_pipeline.store.draft import Draft
from sae_pipeline.store.errors import Busy, Damaged, NewerFormat, NotPublished, PipelineError
from sae_pipeline.store.memory import reuse_freed_memory
from sae_pipeline.store.outputs import Outputs, Pointers
from sae_pipeline.store.progress import Console, Progress, silent
from sae_pipeline.store.reread import Damage
from sae_pipeline.store.sharded_array import ShardedArray
from sae_pipeline.store.threads import limit_to_one_thread

__all__ = [
    "Artefact",
    "Busy",
    "Console",
    "Damage",
    "Damaged",
    "Draft",
    "NewerFormat",
    "NotPublished",
    "Outputs",
    "PipelineError",
    "Pointers",
    "Progress",
    "ShardedArray",
    "decode_float32",
    "limit_to_one_thread",
    "read_json",
    "reuse_freed_memory",
    "silent",
    "write_json_atomic",
]
