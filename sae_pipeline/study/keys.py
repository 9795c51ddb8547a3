"""Names of sites and autoencoders: short, readable, safe in a path and as a Dagster partition key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

WHERE: Final = ("resid_pre", "resid_mid", "resid_post", "attn_z", "attn_out", "mlp_out", "mlp_mid")
SAFE_KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, order=True)
class Site:
    """One activation site, `<alias>.<layer>.<where>`; `layer` counts blocks from 0."""

    alias: str
    layer: int
    where: str

    def __str__(self) -> str:
        return f"{self.alias}.{self.layer}.{self.where}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a resolved key such as `gpt2.8.resid_post`, from the right.

        Raises:
            ValueError: the key is malformed or still holds a fraction of the depth.
        """
        alias, layer, where = split_site(text)
        if not layer.isdigit():
            raise ValueError(f"site {text!r}: layer {layer!r} is not resolved to a number yet")
        return cls(alias, int(layer), where)


def split_site(text: str) -> tuple[str, str, str]:
    """Split a site key into (alias, layer, where) from the right and check each part."""
    parts = text.rsplit(".", 2)
    if len(parts) != 3:
        raise ValueError(f"site {text!r}: write <alias>.<layer>.<where>, e.g. gpt2.8.resid_post")
    alias, layer, where = parts
    if where not in WHERE:
        raise ValueError(f"site {text!r}: {where!r} is not one of {', '.join(WHERE)}")
    if not re.fullmatch(r"\d+|\d+of\d+", layer):
        raise ValueError(f"site {text!r}: layer {layer!r} is neither a number nor like 3of4")
    if not SAFE_KEY.fullmatch(alias):
        raise ValueError(f"site {text!r}: alias {alias!r} may hold letters, digits, '.', '_' and '-' only")
    return alias, layer, where


def resolve_site(text: str, n_layers: int) -> Site:
    """Resolve `code.3of4.resid_post` to a layer: the last block of the first 3/4 of the depth.

    Raises:
        ValueError: the layer lies outside the model.
    """
    alias, layer, where = split_site(text)
    if "of" in layer:
        numerator, denominator = (int(part) for part in layer.split("of"))
        if not 0 < numerator <= denominator:
            raise ValueError(f"site {text!r}: {layer} does not lie between 0 and 1")
        index = max(0, round(n_layers * numerator / denominator) - 1)
    else:
        index = int(layer)
    if not 0 <= index < n_layers:
        raise ValueError(f"site {text!r}: layer {index} does not exist; the subject has layers 0 to {n_layers - 1}")
    return Site(alias, index, where)


def short_number(value: float) -> str:
    """Shortest text that reads back as `value`: `0.03`, `1e-05`, `4`."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def autoencoder_key(
    recipe: str, n: int, *, k: int | None, l1: float | None, target_l0: float | None, tag: str | None, seed: int
) -> str:
    """Build `<recipe>-n<latents>-k<k>[-<tag>][-s<seed>]`; seed 0 is left out so that adding seeds renames nothing."""
    sparsity = {"k": k, "l": l1, "t": target_l0}
    parts = [recipe, f"n{n}"] + [
        f"{name}{short_number(value)}" for name, value in sparsity.items() if value is not None
    ]
    if tag:
        parts.append(tag)
    if seed:
        parts.append(f"s{seed}")
    return "-".join(parts)


def finetuned_key(recipe: str, parent: str, *, tag: str | None, seed: int) -> str:
    """Build `<recipe>-of-<parent>[-<tag>][-s<seed>]`."""
    return "-".join([recipe, "of", parent] + ([tag] if tag else []) + ([f"s{seed}"] if seed else []))
