"""Reading a study: YAML, overrides from the command line, and errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sae_pipeline.store.errors import PipelineError
from sae_pipeline.study.autoencoder_spec import check_grid_sites
from sae_pipeline.study.keys import WHERE
from sae_pipeline.study.models import Study


class StudyError(PipelineError):
    """A study that cannot be read; the message says what to change."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `on`, `off`, `yes` and `no` are words, as in YAML 1.2, and not switches."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


_NOTHING, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping that says everything once: plain YAML would let the last of two equal keys win."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
        if key.tag == _NOTHING:
            key.tag = _TEXT  # a key is always a word: `dataset: {null: gaussian_cov}`
        seen.add(str(key.value))
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study.

    Args:
        path: the YAML file.
        overrides: `dotted.key=value` settings; values are YAML, list items are addressed by index.

    Raises:
        StudyError: the file is missing or unreadable, a key is unknown, or a value is impossible.
    """
    raw = _read_yaml(path)
    for override in overrides:
        _override(raw, override)
    try:
        study = Study.model_validate(raw)
        check_grid_sites(study)
    except ValidationError as error:
        raise StudyError(f"{path.name}: " + "; ".join(_explain(item) for item in _causes(error))) from None
    except ValueError as error:
        raise StudyError(f"{path.name}: {error}") from None
    return study


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise StudyError(f"there is no study at {path}{_others(path)}") from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{path.name} cannot be read, mend it there: {error}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{path.name} holds no mapping of keys to values; see studies/demo.yaml")
    return raw


def _others(path: Path) -> str:
    names = sorted(other.stem for other in path.parent.glob("*.yaml"))
    if not names:
        return "; name one in studies/, or a file that ends in .yaml"
    near = difflib.get_close_matches(path.stem, names, n=1)
    return f"{f'; did you mean {near[0]!r}?' if near else ''}; known here: {', '.join(names)}"


def _override(raw: dict[str, Any], text: str) -> None:
    dotted, separator, value = text.partition("=")
    if not separator:
        raise StudyError(f"--set {text!r}: write key=value, e.g. tokens.train=500k")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"--set {text!r}: the value is not YAML: {error}") from None
    *parents, last = _steps(dotted.strip())
    node: Any = raw
    for step in parents:
        node = _descend(node, step, text)
    if isinstance(node, list):
        node[_index(node, last, text)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise StudyError(f"--set {text!r}: {parents[-1]!r} holds {node!r}, so there is nothing called {last!r} in it")


def _steps(dotted: str) -> list[str]:
    """Split at dots, but keep a site key such as `code.3of4.resid_post` whole: it holds dots itself."""
    parts = dotted.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part in WHERE), 0)
    if parts[0] == "sites" and end:
        return ["sites", ".".join(parts[1:end]), *parts[end:]]
    return parts


def _index(node: list[Any], step: str, text: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise StudyError(f"--set {text!r}: {step!r} is not an index below {len(node)}")
    return int(step)


def _descend(node: Any, step: str, text: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, step, text)]
    if not isinstance(node, dict):
        raise StudyError(f"--set {text!r}: the study holds {node!r} there, so there is nothing called {step!r} in it")
    if node.get(step) is None:
        node[step] = {}
    return node[step]


_MAPPING = "is no mapping; write `key: value` pairs"
_IN_OTHER_WORDS = {
    "missing": "is missing; see studies/demo.yaml",
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": "is no list; write [first, second]",
}


def _causes(error: ValidationError) -> list[Any]:
    """The errors without those that only follow from a deeper one (a list is "too short" when its entry was bad)."""
    found = error.errors()
    return [
        item
        for item in found
        if not any(
            other is not item and other["loc"][: len(item["loc"])] == item["loc"] != other["loc"] for other in found
        )
    ]


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"]) or "study"
    if error["type"] == "extra_forbidden":
        return f"unknown key {location!r}{_suggestion(error['loc'])}"
    message = _IN_OTHER_WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    return f"{location}: {message}"


def _suggestion(location: tuple[Any, ...]) -> str:
    model = _model_at(location[:-1])
    known = list(model.model_fields) if model is not None else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid here: {', '.join(known)}" if known else ""


def _model_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model whose fields lie at a location; list indices and keys of mappings are passed over."""
    model: type[BaseModel] = Study
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = _models_in(field.annotation)
        if not inner:
            return None
        model = inner[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
