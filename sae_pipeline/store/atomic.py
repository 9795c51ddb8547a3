"""Files that are whole or absent, whatever moment a crash or power cut chooses.

Order of every write: bytes to a hidden temporary beside the target, fsync, one atomic directory operation, fsync of
the directory. `create` never replaces (it is the object store's create-if-absent), `replace` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_pipeline.store.errors import Damaged

Bytes = bytes | bytearray | memoryview
"""Whatever holds bytes one after the other."""
_SEAL = re.compile(rb'\{"checksum": "([0-9a-f]{64})",\n')


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a directory and its missing parents, each durable."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    fsync_dir(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write a new file; FileExistsError if the name is taken, and then nothing changes."""
    temporary = _write_temporary(path, [data])
    try:
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
    fsync_dir(path.parent)


def replace(path: Path, *parts: Bytes) -> None:
    """Write a file of these parts, replacing one of that name: readers see the old bytes or the new, never a mixture.

    Whoever has the old file open, or linked under another name, keeps it.
    """
    os.replace(_write_temporary(path, parts), path)
    fsync_dir(path.parent)


def view_of(data: Bytes) -> memoryview:
    """The bytes themselves, to be cut without a copy."""
    return memoryview(data).cast("B")


def _write_temporary(path: Path, parts: Iterable[Bytes]) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for view in map(view_of, parts):
            while view:  # the system may take less than it is given, and never takes more than 2 GiB
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json_atomic(path: Path, value: Any) -> None:
    """Write a value as JSON (sorted keys; numpy values become numbers and lists; NaN and infinities become null)."""
    replace(path, dumps(value).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; `Damaged` if it is not JSON, FileNotFoundError if it is not there."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Damaged(path, f"is not JSON: {error}") from error


def dumps(value: Any) -> str:
    """JSON text with sorted keys; objects are indented; short ones, and lists without objects, stay on one line."""
    return _text(_plain(value), "")


def seal(value: dict[str, Any]) -> bytes:
    """A JSON object whose first line holds the SHA-256 of all the bytes after that line."""
    body = dumps(value).removeprefix("{\n").encode() + b"\n"
    return b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n' + body


def unseal(path: Path, data: bytes) -> dict[str, Any]:
    """The object inside sealed bytes; `Damaged` if one bit of them differs from what was sealed."""
    match = _SEAL.match(data)
    if not match or hashlib.sha256(data[match.end() :]).hexdigest().encode() != match.group(1):
        raise Damaged(path, "its checksum does not match its content; it was changed or cut short after it was written")
    value = json.loads(data)
    del value["checksum"]
    return dict(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _short(value: dict[str, Any]) -> bool:
    scalars = not any(isinstance(item, dict | list) for item in value.values())
    return scalars and len(json.dumps(value)) <= 200


def _text(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and value and not (indent and _short(value)):
        rows = [f"{deeper}{json.dumps(key)}: {_text(value[key], deeper)}" for key in sorted(value)]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(deeper + _text(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, sort_keys=True, allow_nan=False)
