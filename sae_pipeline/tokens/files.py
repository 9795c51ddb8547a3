"""Corpora in local files: .txt, .jsonl and .parquet, each also gzipped, alone, in folders or by glob."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from sae_pipeline.store import PipelineError, Progress, silent

SEPARATOR = "<|endoftext|>"
KINDS = (".txt", ".jsonl", ".parquet")
_GLOB = frozenset("*?[")
_PARQUET_ROWS = 1024


class CorpusError(PipelineError):
    """A corpus that cannot be read; the message names the place and the remedy."""


class NoField(CorpusError):
    """A record without the field that the corpus names."""


def find_files(source: str, root: Path, field: str) -> dict[str, Path]:
    """Files of a local source by stable name, sorted: the path below the folder or the fixed part of the glob.

    A relative `source` is taken from `root`. Hidden files are left out, and so are a folder's tables without `field`
    beside others that have text: manifests. Raises CorpusError if there is nothing to read.
    """
    parts = (root / Path(source).expanduser()).parts
    fixed = next((i for i, part in enumerate(parts) if _GLOB & set(part)), len(parts))
    base = Path(*parts[:fixed])
    if fixed < len(parts):
        found = [path for path in base.glob(str(Path(*parts[fixed:]))) if path.is_file()]
    elif base.is_dir():
        found = [path for path in base.rglob("*") if path.is_file() and kind_of(path)]
        found = [path for path in found if _may_hold(path, field)] or found
    elif base.is_file():
        base, found = base.parent, [base]
    else:
        raise CorpusError(f"{base} does not exist; `source` is stdlib, a file, a folder, a glob or hf:<org>/<name>")
    named = {path.relative_to(base).as_posix(): path for path in found}
    named = {name: named[name] for name in sorted(named) if not any(p.startswith(".") for p in Path(name).parts)}
    if not named:
        raise CorpusError(f"{root / source} holds no file; expected {', '.join(KINDS)}, each may be gzipped (.gz)")
    for name, path in named.items():
        if not kind_of(path):
            raise CorpusError(f"{path} is none of {', '.join(KINDS)} (.gz); narrow the glob or convert it")
        if not is_unicode(name):
            raise CorpusError(f"{name!a} below {base}: its name is not UTF-8, and names documents; rename it")
    return named


def kind_of(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet` (a trailing `.gz` set aside), None for anything else."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def _may_hold(path: Path, field: str) -> bool:
    """False for a table whose first record lacks the field; damaged files pass, to be reported when they are read."""
    if kind_of(path) == ".txt":
        return True
    try:
        with path.open("rb") as raw:
            next(_table(path, raw, field), None)
    except NoField:
        return False
    except (CorpusError, OSError):
        return True
    return True


def read_files(files: dict[str, Path], field: str, *, progress: Progress = silent) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document: the file's name, or `<name>#<i>` where a file holds several."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    done, total = 0, sum(sizes.values())
    for name, path in files.items():
        with _reading(path), path.open("rb") as raw:
            for document in _read_file(name, path, raw, field):
                yield document
                at = sizes[name] if raw.closed else min(raw.tell(), sizes[name])
                progress.update(done + at, total, "bytes")
        done += sizes[name]
    progress.update(total, total, "bytes")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read ({error.strerror or error}); mend its permissions, copy it again or take it out"
        ) from error


def _read_file(name: str, path: Path, raw: BinaryIO, field: str) -> Iterator[tuple[str, str]]:
    if kind_of(path) == ".txt":
        texts = _txt(path, raw)
        first, second = next(texts, None), next(texts, None)
        if first is not None and second is None:
            yield name, first
            return
        head = [text for text in (first, second) if text is not None]
        yield from ((f"{name}#{i}", text) for i, text in enumerate(chain(head, texts)))
    else:
        yield from ((f"{name}#{i}", text) for i, text in enumerate(_table(path, raw, field)))


def _table(path: Path, raw: BinaryIO, field: str) -> Iterator[str]:
    return _jsonl(path, raw, field) if kind_of(path) == ".jsonl" else _parquet(path, raw, field)


def _txt(path: Path, raw: BinaryIO) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path, raw):
        if line.strip() != SEPARATOR:
            lines.append(line)
            continue
        yield "".join(lines)
        lines = []
    if lines:
        yield "".join(lines)


def _jsonl(path: Path, raw: BinaryIO, field: str) -> Iterator[str]:
    for number, record in _records(path, raw):
        yield text_of(record, field, f"{path}, line {number}")


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line that is not blank of a .jsonl or .jsonl.gz file."""
    with _reading(path), path.open("rb") as raw:
        yield from _records(path, raw)


def _records(path: Path, raw: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, raw), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}, line {number} is not JSON: {error}; mend the line or take it out") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path}, line {number} is not a JSON object; write one record a line")
        yield number, record


def _parquet(path: Path, raw: BinaryIO, field: str) -> Iterator[str]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    with _unzipped(path, raw) as file:
        try:
            table = parquet.ParquetFile(file)
            names = list(table.schema_arrow.names)
            if field not in names:
                raise NoField(f"{path} has no column {field!r}; set the corpus's `field` to one of {names}")
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield text_of({field: value}, field, f"{path}, row {row}")
                    row += 1
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path} is not a parquet file, or not a whole one: {error}; write it again") from error


def text_of(record: dict[str, Any], field: str, place: str) -> str:
    """The text in `record[field]`; CorpusError that names `place` and the fields there are."""
    if field not in record:
        raise NoField(f"{place} has no field {field!r}; set the corpus's `field` to one of {sorted(record)}")
    value = record[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{place}: field {field!r} holds {type(value).__name__}, not text; set the corpus's `field` to another"
        )
    if not is_unicode(value):
        raise CorpusError(f"{place}: field {field!r} holds half a character (a lone surrogate); mend it or take it out")
    return value


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON escapes and file names can hold what no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path, raw: BinaryIO) -> Iterator[str]:
    with _unzipped(path, raw) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        try:
            for line in lines:
                if "\0" in line:
                    raise CorpusError(f"{path} holds NUL bytes: it is binary, not text; take it out of the corpus")
                yield line
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 text ({error.reason}); convert it or take it out") from error


@contextmanager
def _unzipped(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    if path.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as file:
        try:
            yield cast(BinaryIO, file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CorpusError(f"{path} is not a whole gzip file: {error}; download or pack it again") from error


def digest_files(files: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of every file's bytes in hex, by the file's stable name."""
    return {name: _digest(path) for name, path in files.items()}


def _digest(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_files(files: dict[str, Path], digests: dict[str, str]) -> dict[str, Any]:
    """Identity of local files by content: how many, their bytes, and one hash of their names and digests."""
    listed, n_bytes = hashlib.sha256(), sum(path.stat().st_size for path in files.values())
    for name in files:
        listed.update(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogateescape"))
    return {"kind": "files", "files": len(files), "bytes": n_bytes, "sha256": listed.hexdigest()}
