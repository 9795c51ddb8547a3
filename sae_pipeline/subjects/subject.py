"""A loaded subject model: run it up to a site, resume it from one, edit what passes through one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects.architectures import BLOCK, architecture_of
from sae_pipeline.subjects.card import SubjectCard, card_of, hf_config
from sae_pipeline.subjects.errors import SubjectError
from sae_pipeline.subjects.hooks import Side, Stopped, capturing, editing, editing_sum, instead_of, pass_through
from sae_pipeline.subjects.prefix import Prefix, Recorder
from sae_pipeline.subjects.source import Source, check_weights, locate
from sae_pipeline.subjects.unembedding import direct_logits
from sae_pipeline.subjects.untrained import draw_untrained


class Subject:
    """A causal language model with hooks at its sites; see docs/sites.md for where each site lies.

    Not thread-safe: hooks and replaced blocks are in place while a pass runs.

    Attributes:
        card: its shape and identity.
        device: where it computes.
    """

    def __init__(self, card: SubjectCard, model: nn.Module, device: torch.device) -> None:
        self.card = card
        self.device = device
        self._architecture = architecture_of(card.architecture)
        self._model: Any = model
        self._blocks: Any = model.get_submodule(self._architecture.blocks)
        self._edited_middles: set[int] = set()

    def check(self, site: Site) -> None:
        """Raise SubjectError, with the sites there are, if the model lacks `site`."""
        self.card.check(site)

    def width(self, site: Site) -> int:
        """Values per token at `site`."""
        return self.card.width(site)

    @torch.no_grad()
    def run(self, ids_cl: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Compute the activations at several sites in one pass that stops right after the last of them.

        Args:
            ids_cl: token ids [contexts, length], right-padded; padding needs no mask under causal attention.
            sites: at least one site; no logits are computed.

        Returns:
            Per site a tensor [contexts, length, width] in the subject's dtype, on its device. Not to be written into.

        Raises:
            SubjectError: a site does not exist, an id lies outside the vocabulary, or the contexts are too long.
        """
        if not sites:
            raise SubjectError("name at least one site to run to")
        for site in sites:
            self._refuse_behind_middle(site, "resid_pre", "attn_out")
        with capturing({site: self._place(site) for site in sites}) as captured:
            self._forward(ids_cl)
        return {site: captured[site] for site in sites}

    @torch.no_grad()
    def logits(self, ids_cl: Tensor) -> Tensor:
        """Compute the logits [contexts, length, vocabulary] in the subject's dtype."""
        return self._forward(ids_cl)

    @torch.no_grad()
    def resume(self, site: Site, value_cld: Tensor, ids_cl: Tensor, *, after: Prefix | None = None) -> Tensor:
        """Compute the logits with the activation at `site` replaced by `value_cld`.

        At residual sites the blocks before the site are skipped. With the untouched activation the result is bitwise
        that of `logits` on the same contexts: same kernels on the same shapes.

        Args:
            site: where to enter.
            value_cld: activations [contexts, length, width] of every position.
            ids_cl: token ids [contexts, length] that `value_cld` belongs to.
            after: positions that come before these in every context, as `prefix` ran them at the same site; equal to
                passing them along, but for rounding.

        Returns:
            Logits [contexts, length, vocabulary].

        Raises:
            SubjectError: as for `run`, or `value_cld` has another shape than the site.
        """
        return self._resume(site, value_cld, ids_cl, after)

    @torch.no_grad()
    def prefix(self, site: Site, value_pd: Tensor, ids_p: Tensor) -> Prefix:
        """Run the first positions of a context once: activations [positions, width] at `site`, ids [positions].

        `resume` takes what comes back as `after`. Raises SubjectError as it does.
        """
        cache = Recorder(self.card.n_layers)
        with suppress(Stopped):  # a site behind the last attention has the pass end by itself
            self._resume(site, value_pd[None], ids_p[None], use_cache=True, past_key_values=cache, logits_to_keep=1)
        return Prefix.of(cache, len(ids_p))

    @contextmanager
    def editing(self, site: Site, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Pass the activation at `site` through `edit` in every pass of the body; afterwards the model is as before.

        Args:
            site: where.
            edit: from the activation [contexts, length, width], in the subject's dtype and not to be written into, to
                what takes its place: of the same shape, in any dtype, on any device.

        Raises:
            SubjectError: the site does not exist, or lies behind an edited resid_mid of its block; from within a pass:
                `edit` gave another shape.
        """

        def edited(value_cld: Tensor) -> Tensor:
            result_cld = edit(value_cld)
            if result_cld.shape != value_cld.shape:
                raise SubjectError(
                    f"site {site}: the edit made {tuple(result_cld.shape)} of {tuple(value_cld.shape)}; keep the shape"
                )
            return result_cld.to(value_cld)

        module, side = self._place(site)
        self._refuse_behind_middle(site, "resid_pre", "attn_out", "resid_mid")
        if site.where != "resid_mid":
            with editing(module, side, edited):
                yield
            return
        attention, _ = self._place(replace(site, where="attn_out"))
        self._edited_middles.add(site.layer)
        try:
            with editing_sum(self._blocks[site.layer], attention, edited):
                yield
        finally:
            self._edited_middles.remove(site.layer)

    def direct_logits(self, direction_bd: Tensor) -> Tensor:
        """What directions of the residual stream do to the logits directly, [b, vocabulary]; see `unembedding`.

        Raises:
            SubjectError: the directions are not as wide as the residual stream.
        """
        if direction_bd.ndim != 2 or direction_bd.shape[1] != self.card.d_model:
            raise SubjectError(
                f"directions of the residual stream are [directions, {self.card.d_model}], not "
                f"{tuple(direction_bd.shape)}"
            )
        return direct_logits(self._model, self.card.architecture, direction_bd.to(self.device))

    def close(self) -> None:
        """Free the model's memory; the subject cannot be used afterwards."""
        self._model = self._blocks = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _resume(
        self, site: Site, value_cld: Tensor, ids_cl: Tensor, after: Prefix | None = None, **options: Any
    ) -> Tensor:
        expected = (*ids_cl.shape, self.width(site))
        if tuple(value_cld.shape) != expected:
            raise SubjectError(f"site {site}: a value of shape {tuple(value_cld.shape)} is not one of {expected}")
        self._refuse_behind_middle(site, "resid_pre", "attn_out", "resid_mid")
        value = value_cld.to(self.device, self._model.dtype)
        with ExitStack() as stack:
            self._enter(stack, site, value)
            return self._forward(ids_cl, after, **options)

    def _enter(self, stack: ExitStack, site: Site, value: Tensor) -> None:
        """Arrange that the next pass takes `value` at `site` and computes nothing that `value` makes superfluous."""
        if not site.where.startswith("resid_"):
            stack.enter_context(editing(*self._place(site), lambda _: value))
            return
        for block in self._blocks[: site.layer]:
            stack.enter_context(instead_of(block, pass_through))
        block = self._blocks[site.layer]
        if site.where == "resid_post":
            stack.enter_context(instead_of(block, lambda *_, **__: value))
            return
        stack.enter_context(editing(block, "input", lambda _: value))
        if site.where == "resid_mid":
            # The middle is input + attention and has two readers (MLP norm and skip), so no single hook can replace
            # it. Taking it as the input and adding an attention output of zero reaches both, and value + 0 is exact.
            attention = block.get_submodule(self._architecture.attention)
            stack.enter_context(instead_of(attention, lambda *_, **__: (torch.zeros_like(value), None)))

    def _refuse_behind_middle(self, site: Site, *wheres: str) -> None:
        """Refuse a site at one of `wheres` in a block whose middle is edited: its tensor is no longer there."""
        if site.layer in self._edited_middles and site.where in wheres:
            raise SubjectError(
                f"site {site} cannot be reached while the resid_mid of its block is edited; leave that edit first"
            )

    def _place(self, site: Site) -> tuple[nn.Module, Side]:
        self.check(site)
        place = self._architecture.places[site.where]
        block = self._blocks[site.layer]
        return (block if place.module == BLOCK else block.get_submodule(place.module)), place.side

    def _forward(self, ids_cl: Tensor, after: Prefix | None = None, **options: Any) -> Tensor:
        self._check_ids(ids_cl, after.length if after else 0)
        if after:
            options |= after.options(ids_cl.shape[1], self.card.n_layers, self.device)
        output = self._model(input_ids=ids_cl.to(self.device), **({"use_cache": False} | options))
        logits: Tensor = output.logits
        return logits

    def _check_ids(self, ids_cl: Tensor, before: int) -> None:
        """Name the mistake that an embedding would answer with an index error, or on a GPU with a dead context."""
        if ids_cl.ndim != 2 or ids_cl.numel() == 0:
            raise SubjectError(f"token ids must be [contexts, length] and not empty, not {tuple(ids_cl.shape)}")
        if before + ids_cl.shape[1] > self.card.max_positions:
            raise SubjectError(
                f"contexts of {before + ids_cl.shape[1]} tokens exceed the subject's {self.card.max_positions} "
                "positions; lower tokens.context"
            )
        low, high = (int(bound) for bound in ids_cl.aminmax())
        if low < 0 or high >= self.card.vocab_size:
            raise SubjectError(
                f"token ids from {low} to {high} do not fit the subject's vocabulary of {self.card.vocab_size}; "
                "were the tokens made with another tokenizer?"
            )


def load_subject(config: SubjectConfig, *, root: Path, device: str = "auto") -> Subject:
    """Load a subject in evaluation mode, without gradients.

    Args:
        config: the subject part of a study: what, in which dtype, with which attention kernel.
        root: folder that a relative local path starts from.
        device: overrides the study's device; `auto` means the study's, and there CUDA where it is available.

    Raises:
        SubjectError: the model cannot be found, is incomplete, does not load, or the device does not exist.
    """
    source = locate(config, root=root, weights=True)
    if config.weights is None:
        check_weights(source)
    card = card_of(config, source)
    chosen = pick_device(config.device if device == "auto" else device)
    model = _model(config, source).to(chosen).eval().requires_grad_(False)
    # GPT-2's forward looks for padding at the ends of every batch and warns that no attention mask was passed.
    model.config.pad_token_id = None
    return Subject(card, model, chosen)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one. SubjectError if it is unknown or not there."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SubjectError(f"device {name!r} is unknown; write auto, cpu, cuda or cuda:<index>") from None
    if device.type not in ("cpu", "cuda"):
        raise SubjectError(f"device {name!r} is not supported; write auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda" and not available:
        raise SubjectError(f"device {name!r}: this machine has no CUDA device; write cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SubjectError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return device


def _model(config: SubjectConfig, source: Source) -> Any:
    if config.weights == "untrained":
        return draw_untrained(hf_config(source), dtype=getattr(torch, config.dtype), attention=config.attention)
    return _load(config, source)


def _load(config: SubjectConfig, source: Source) -> Any:
    try:
        with _no_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                source.folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=getattr(torch, config.dtype),
                attn_implementation=config.attention,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors raise many types; all mean that the files do not load
        raise SubjectError(f"subject {source.name!r} cannot be loaded: {error}") from error
    # Left to itself transformers fills what the files lack with random numbers and logs a warning.
    absent = sorted(str(item) for part in ("missing_keys", "mismatched_keys") for item in report[part])
    if absent:
        raise SubjectError(
            f"subject {source.name!r}: {len(absent)} weights are missing from its files or have the wrong shape, "
            f"e.g. {absent[0]}"
        )
    return model


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the libraries' bars out of a pipeline that reports progress itself."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
