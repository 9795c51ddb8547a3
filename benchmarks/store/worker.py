"""One way of keeping rows on a disk, in a process of its own: writes or reads the same shards when told to, timed.

`python worker.py WAY FOLDER D SHARD_ROWS N_SHARDS CORES`, driven by benchmarks/store.py. A line on standard input is
`write FOLDER` or `read FOLDER`; the answer is a line of JSON: seconds, and what /proc/self/io counted (wchar, rchar:
bytes that the process gave to and took from the system, from its caches too). It runs in the environment of its way
and imports nothing else of this project, but for our own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SLAB_BYTES = 24 << 20  # a result of 32 MiB or more costs page faults that have nothing to do with the format
BLOCK_BYTES = 256 << 10


class Way:
    """Rows (n_shards · shard_rows, d) of float16, every shard alike, and how they are written and read."""

    def __init__(self, d: int, shard_rows: int, n_shards: int, cores: int) -> None:
        self.d, self.shard_rows, self.n_shards, self.cores = d, shard_rows, n_shards, cores
        self.chunk_rows = min(4096, shard_rows)
        rows_xd = np.random.default_rng(0).standard_normal((shard_rows, d), dtype=np.float32).astype(np.float16)
        self.rows_xd = rows_xd
        self.buffers = [np.empty_like(rows_xd) for _ in range(cores)]

    def versions(self) -> str:
        """What was installed, to be printed beside the figures."""
        return f"numpy {np.__version__}"

    def begin(self, folder: Path) -> None:
        """Make ready to write, timed with the writing."""

    def write(self, folder: Path, i: int) -> None:
        """Write shard i, durably."""
        raise NotImplementedError

    def finish(self, folder: Path) -> None:
        """What is left once all shards are written; timed apart."""

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        """A function that reads shard i, into the buffer or into memory of its own."""
        raise NotImplementedError

    def slabs(self, i: int) -> Iterator[tuple[int, int]]:
        """Rows from and to of the parts in which a library reads shard i, whole chunks each."""
        step = max(self.chunk_rows, SLAB_BYTES // (2 * self.d) // self.chunk_rows * self.chunk_rows)
        start, stop = i * self.shard_rows, (i + 1) * self.shard_rows
        for a in range(start, stop, step):
            yield a, min(stop, a + step)


class Raw(Way):
    """A file a shard, read into a buffer that is used again."""

    at_once = sys.maxsize

    def write(self, folder: Path, i: int) -> None:
        with (folder / str(i)).open("wb", buffering=0) as file:
            view = self.rows_xd.data.cast("B")
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        def read(i: int, buffer: np.ndarray) -> None:
            with (folder / str(i)).open("rb", buffering=0) as file:
                view = buffer.data.cast("B")
                while view:
                    view = view[file.readinto(view[: self.at_once]) :]

        return read


class RawBlocks(Raw):
    """The same in calls of the size that our own reading uses."""

    at_once = BLOCK_BYTES


class Ours(Way):
    """Committed shards of a draft, then published."""

    def begin(self, folder: Path) -> None:
        from sae_pipeline.store import Draft

        self.draft = Draft.open(folder / "a", stage="activations", key="bench", identity="a" * 64, lineage={})
        shape = (self.shard_rows * self.n_shards, self.d)
        self.array = self.draft.array("acts", shape=shape, dtype="float16", shard_rows=self.shard_rows)
        assert self.array.chunk_rows == self.chunk_rows

    def write(self, folder: Path, i: int) -> None:
        self.array.write_shard(i, self.rows_xd)

    def finish(self, folder: Path) -> None:
        self.draft.publish({})

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        from sae_pipeline.store import Artefact

        array = Artefact.open(folder / "a").array("acts")
        return lambda i, buffer: array.read(array.rows(i).start, array.rows(i).stop, out=buffer)


class OursUnchecked(Ours):
    """The same reading with its checksums left out, which the library never does: it shows what they cost."""

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        from sae_pipeline.store import direct

        def read(file: Any, offset: int, chunk: np.ndarray, *_: object) -> None:
            for start in range(0, len(chunk), BLOCK_BYTES):
                file.read_into(offset + start, chunk[start : start + BLOCK_BYTES].data)

        direct._read_chunk = read
        return super().opened(folder)


class ZarrPython(Way):
    """The array interface, the same shards and chunks with crc32c."""

    def __init__(self, *form: int) -> None:
        super().__init__(*form)
        import zarr

        zarr.config.set({"threading.max_workers": self.cores})

    def versions(self) -> str:
        import zarr

        return f"zarr {zarr.__version__}"

    def compressors(self) -> list[Any]:
        """Applied to each inner chunk."""
        from zarr.codecs import Crc32cCodec

        return [Crc32cCodec()]

    def begin(self, folder: Path) -> None:
        import zarr

        self.array = zarr.create_array(
            folder / "a", shape=(self.shard_rows * self.n_shards, self.d), dtype="float16", fill_value=0,
            shards=(self.shard_rows, self.d), chunks=(self.chunk_rows, self.d), filters=None,
            compressors=self.compressors(), config={"write_empty_chunks": True},
        )  # fmt: skip

    def write(self, folder: Path, i: int) -> None:
        self.array[i * self.shard_rows : (i + 1) * self.shard_rows] = self.rows_xd
        sync(folder / "a" / "c" / str(i))

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        import zarr

        array = zarr.open_array(folder / "a", mode="r")

        def read(i: int, _: np.ndarray) -> None:
            for a, b in self.slabs(i):
                array[a:b]

        return read


class Zarrs(ZarrPython):
    """Zarr-python's array interface over the Rust codec pipeline."""

    def __init__(self, *form: int) -> None:
        super().__init__(*form)
        import zarr
        import zarrs  # noqa: F401

        zarr.config.set(
            {
                "codec_pipeline.path": "zarrs.ZarrsCodecPipeline",
                "codec_pipeline.validate_checksums": True,
                "threading.num_workers": self.cores,
            }
        )

    def versions(self) -> str:
        from importlib.metadata import version

        return f"zarrs {version('zarrs')}, {super().versions()}"


class TensorStore(Way):
    """The C++ reader and writer of the same Zarr array."""

    def versions(self) -> str:
        from importlib.metadata import version

        return f"tensorstore {version('tensorstore')}"

    def store(self, folder: Path, **options: Any) -> Any:
        import tensorstore as ts

        little, crc32c = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [self.chunk_rows, self.d],
                "codecs": [little, crc32c],
                "index_codecs": [little, crc32c],
            },
        }
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "a")},
            "context": {"data_copy_concurrency": {"limit": self.cores}},
            "metadata": {
                "shape": [self.shard_rows * self.n_shards, self.d],
                "data_type": "float16",
                "fill_value": 0,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, self.d]}},
                "codecs": [sharding],
            },
        }
        return ts.open(spec, **options).result()

    def begin(self, folder: Path) -> None:
        self.array = self.store(folder, create=True)

    def write(self, folder: Path, i: int) -> None:
        self.array[i * self.shard_rows : (i + 1) * self.shard_rows].write(self.rows_xd).result()
        sync(folder / "a" / "c" / str(i))

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        array = self.store(folder, open=True)

        def read(i: int, _: np.ndarray) -> None:
            for a, b in self.slabs(i):
                array[a:b].read().result()

        return read


class Safetensors(Way):
    """A file of one tensor a shard; it has no checksums."""

    def versions(self) -> str:
        from importlib.metadata import version

        return f"safetensors {version('safetensors')}"

    def write(self, folder: Path, i: int) -> None:
        from safetensors.numpy import save_file

        save_file({"x": self.rows_xd}, folder / f"{i}.safetensors")
        sync(folder / f"{i}.safetensors")

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        from safetensors.numpy import load_file

        return lambda i, _: load_file(folder / f"{i}.safetensors")


class Arrow(Way):
    """Hugging Face datasets: an Arrow file a shard, mapped and copied into the buffer; it has no checksums."""

    def versions(self) -> str:
        from importlib.metadata import version

        return f"datasets {version('datasets')}, pyarrow {version('pyarrow')}"

    def write(self, folder: Path, i: int) -> None:
        import datasets
        import pyarrow as pa

        datasets.disable_progress_bars()
        rows = pa.FixedSizeListArray.from_arrays(pa.array(self.rows_xd.reshape(-1)), self.d)
        table = datasets.table.InMemoryTable(pa.table({"x": rows}))
        datasets.Dataset(table).save_to_disk(str(folder / str(i)), num_shards=1)
        sync(folder / str(i))

    def opened(self, folder: Path) -> Callable[[int, np.ndarray], object]:
        import datasets

        def read(i: int, buffer: np.ndarray) -> None:
            table = datasets.load_from_disk(str(folder / str(i))).with_format("arrow")[:]
            start, target = 0, buffer.reshape(-1)
            for chunk in table.column("x").chunks:
                values = chunk.flatten().to_numpy(zero_copy_only=True)
                target[start : start + len(values)] = values
                start += len(values)
            assert start == target.size

        return read


WAYS: dict[str, type[Way]] = {
    "raw": Raw,
    "raw, 256 KiB a call": RawBlocks,
    "ours": Ours,
    "ours, unchecked": OursUnchecked,
    "zarr-python": ZarrPython,
    "zarrs": Zarrs,
    "tensorstore": TensorStore,
    "safetensors": Safetensors,
    "datasets": Arrow,
}


def sync(path: Path) -> None:
    """Make a file, or the files below a folder, durable."""
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def counted() -> dict[str, int]:
    """What this process has written and read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return {"written": int(counts["wchar"]), "read": int(counts["rchar"])}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, and bytes written and read; what the counting itself reads is left out."""
    own = counted()["read"]
    before = counted()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    after = counted()
    looking = before["read"] - own
    return {
        "seconds": seconds,
        "written": after["written"] - before["written"],
        "read": after["read"] - before["read"] - looking,
    }


def each_shard(way: Way, work: Callable[[int], object]) -> None:
    """Do something for every shard, as many at a time as there are cores."""
    if way.cores == 1:
        for i in range(way.n_shards):
            work(i)
        return
    with ThreadPoolExecutor(way.cores) as pool:
        list(pool.map(work, range(way.n_shards)))


def write(way: Way, folder: Path) -> dict[str, Any]:
    """Everything written and durable; `finish` apart."""
    folder.mkdir(parents=True)

    def shards() -> None:
        way.begin(folder)
        each_shard(way, lambda i: way.write(folder, i))

    return timed(shards) | {"finish": timed(lambda: way.finish(folder))}


def read(way: Way, folder: Path) -> dict[str, Any]:
    """Everything read once, opening included."""
    free = list(way.buffers)

    def shards() -> None:
        into = way.opened(folder)

        def one(i: int) -> None:
            buffer = free.pop()
            into(i, buffer)
            free.append(buffer)

        each_shard(way, one)

    found = timed(shards)
    gc.collect()  # what is still mapped cannot be dropped from the page cache
    return found


def main() -> None:
    name, *form = sys.argv[1:]
    d, shard_rows, n_shards, cores = map(int, form)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library has to say is no answer
    way = WAYS[name](d, shard_rows, n_shards, cores)
    print(json.dumps(way.versions()), flush=True, file=answers)
    for line in sys.stdin:
        what, folder = line.rstrip("\n").split(" ", 1)
        print(json.dumps({"write": write, "read": read}[what](way, Path(folder))), flush=True, file=answers)


if __name__ == "__main__":
    main()
