"""What a study will cost, from its configuration alone: partitions, tokens, bytes, FLOPs, memory, time."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from sae_pipeline.planning.facts import Facts
from sae_pipeline.planning.metric_flops import TokenFlops, metric_flops
from sae_pipeline.study import EMBEDDED_TASKS, AutoencoderSpec, Site, Study, expand, probe_tasks

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_CRC_PER_CHUNK = 4 + 16  # a checksum and an index entry for every inner chunk of 4096 rows
_CHUNK_ROWS = 4096
_CODE_WIDTHS = 4  # codes are kept four times as wide as k, so that curves beyond k can be drawn
_SCORE_BYTES = 156  # ids, masks, clean and ablated scores of one position of the evaluation set
_METRIC_BYTES = 44_000  # tables of one metric of one autoencoder
_TABLE_BYTES = 80_000  # its part of the site's tables, laws and report
_PROBED_DOCUMENTS, _PROBED_CONTEXTS = 400, 8  # of the embedded probe tasks, at most
_PROBED_SHARE = 0.5  # of their tokens, about, that a task asks something of
_SHARE_OF_GEMM = 0.25  # what the demo reached of a plain matrix product: 32 TFLOP in 662 s on two cores, a rough guide


@dataclass(frozen=True)
class Row:
    """One line of a plan; `tokens` are rows of activations read or made, `bytes_` lie on disk afterwards.

    The line `window` is what `activations.retain` leaves to training: rows made then, and the most that lies there.
    """

    what: str
    partitions: int
    tokens: int
    bytes_: int
    flops: float


@dataclass(frozen=True)
class Plan:
    """A plan: its lines, the largest memory of any step, the rate the time is reckoned with, the null control."""

    study: str
    rows: tuple[Row, ...]
    sites: tuple[str, ...]
    memory_bytes: int
    flops_per_s: float
    null: str | None = None

    @property
    def bytes_(self) -> int:
        """Bytes on disk once everything is made."""
        return sum(row.bytes_ for row in self.rows)

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole study."""
        return sum(row.flops for row in self.rows)

    @property
    def seconds(self) -> float:
        """Estimated time on this machine."""
        return self.flops / self.flops_per_s


def make_plan(study: Study, facts: Facts, flops_per_s: float | None = None) -> Plan:
    """Reckon a study's cost.

    Args:
        study: the study.
        facts: sizes of the subject.
        flops_per_s: rate to reckon time with; default a short measurement of this machine's matrix product.
    """
    tokens = study.tokens
    rows = [Row("tokens", 1, tokens.train + tokens.held_out, _token_bytes(study, facts), 0.0)]
    memory = 0
    for text, site in facts.sites.items():
        specs = expand(study, site, text, facts.widths[site])
        rows += _site_rows(study, facts, site, specs)
        memory = max(memory, _memory(study, facts, site, specs))
    rate = flops_per_s if flops_per_s is not None else _SHARE_OF_GEMM * measured_gemm_flops()
    sites = tuple(f"{text} = {site}" for text, site in facts.sites.items())
    return Plan(study.study, tuple(rows), sites, memory, rate, study.null)


def _token_bytes(study: Study, facts: Facts) -> int:
    """Ids of every context, and for each context its document, start and length."""
    tokens = study.tokens
    contexts = (tokens.train_tokens + tokens.held_out) / tokens.context
    return round(contexts * (tokens.context * (2 if facts.vocab_size <= 2**16 else 4) + 4 + 8 + 4))


def _stored(rows: int, width_bytes: int) -> int:
    return rows * width_bytes + -(-rows // _CHUNK_ROWS) * _CRC_PER_CHUNK


def _windowed(study: Study, d: int, specs: Collection[AutoencoderSpec]) -> tuple[int, int, int]:
    """Rows of activations that are retained; under a window its bytes, and the rows made for training (at most).

    Training reads once for each batch size, and once more for what is finetuned. A shard that was read before is found
    again if it is among those that the window holds.
    """
    from sae_pipeline.activations.layout import covering_shards, shard_file_bytes, shard_rows_of
    from sae_pipeline.activations.window import retain_of, window_shards

    config, train = study.activations, study.tokens.train
    if config.retain == "all" or config.statistics_rows is None:
        return train, 0, 0
    shard_rows = shard_rows_of(train, config.shard_tokens)
    pinned = min(train, covering_shards(config.statistics_rows, train, shard_rows) * shard_rows)
    if study.dataset.null is not None or pinned == train:
        return pinned, 0, 0
    shard_bytes = shard_file_bytes(shard_rows, d, config.dtype)
    shards = window_shards(retain_of(config), study.dataset.resident_shards, shard_bytes) or 0
    passes = {(spec.batch, spec.parent is None): 0 for spec in specs}
    for spec in specs:
        run = (spec.batch, spec.parent is None)
        passes[run] = max(passes[run], spec.tokens)
    left = train - pinned
    read, held = sum(passes.values()) * left // train, min(left, shards * shard_rows)
    made = min(read, left) + max(0, read - left) * (left - held) // left
    return pinned, -(-held // shard_rows) * shard_bytes, made


def _site_rows(study: Study, facts: Facts, site: Site, specs: dict[str, AutoencoderSpec]) -> list[Row]:
    d, train, held_out = facts.widths[site], study.tokens.train, min(study.evaluation.tokens, study.tokens.held_out)
    forward = 2.0 * _block_parameters(facts) * (site.layer + 1)
    row_flops = forward * study.tokens.train_tokens / train  # `per_context` takes a few rows of a whole context
    kept, window_bytes, made = _windowed(study, d, specs.values())
    whole = 2.0 * facts.n_params
    null = study.dataset.null is not None
    dataset_bytes = min(study.dataset.sample_rows, kept) * d * 4 + null * _gaussian_bytes(d)
    dataset_bytes += _stored(train, d * 4) if study.dataset.copy_ else 0
    metrics = len(study.evaluation.metrics)
    token = TokenFlops(forward, max(whole - forward, 0.0))
    encode = sum(2.0 * spec.n * d for spec in specs.values())
    return [
        Row(f"activations {site}", 1, kept, _stored(kept, d * _ITEM_BYTES[study.activations.dtype]), row_flops * kept),
        Row(f"evaluation_set {site}", 1, held_out, _stored(held_out, d * 4 + _SCORE_BYTES), 4 * whole * held_out),
        *_probe_rows(study, facts, site, forward),
        Row(f"dataset {site}", 1, kept, dataset_bytes, null * 2.0 * d**2 * kept),
        *([Row(f"window {site}", 0, made, window_bytes, row_flops * made)] if made else []),
        Row(
            f"autoencoder {site}",
            len(specs),
            sum(spec.tokens for spec in specs.values()),
            sum(_autoencoder_bytes(spec, d) for spec in specs.values()),
            sum(training_flops(spec, d) for spec in specs.values()),
        ),
        Row(
            f"codes {site}",
            len(specs),
            held_out * len(specs),
            sum(_code_bytes(spec, held_out) for spec in specs.values()),
            encode * held_out,
        ),
        Row(
            f"metrics {site}",
            len(specs) * metrics,
            held_out * len(specs) * metrics,
            len(specs) * metrics * _METRIC_BYTES,
            metric_flops(study, specs.values(), held_out, token),
        ),
        Row(f"tables, laws, report {site}", 3, 0, len(specs) * _TABLE_BYTES, 0.0),
    ]


def _probe_rows(study: Study, facts: Facts, site: Site, forward: float) -> list[Row]:
    """Probe tasks: of embedded ones the contexts that all documents give at most; how many texts files hold is open."""
    source = probe_tasks(study.evaluation.metrics)
    if source is None:
        return []
    contexts = _PROBED_DOCUMENTS * _PROBED_CONTEXTS if source == EMBEDDED_TASKS else 0
    tokens = contexts * study.tokens.context
    places = round(_PROBED_SHARE * tokens)
    return [Row(f"probe_set {site}", 1, tokens, _stored(places, 4 * facts.widths[site]), forward * tokens)]


def _block_parameters(facts: Facts) -> int:
    return 12 * facts.d_model**2


def training_flops(spec: AutoencoderSpec, d: int) -> float:
    """FLOPs of one training run."""
    from sae_pipeline.training.cost import flops_per_token

    return flops_per_token(spec, d) * spec.tokens


def _gaussian_bytes(d: int) -> int:
    """Mean, covariance and its root in float64."""
    return 8 * (2 * d**2 + d)


def _autoencoder_bytes(spec: AutoencoderSpec, d: int) -> int:
    copies = 1 + len(spec.milestones or ()) + 4 * bool(spec.keep_before_decay)
    return copies * (4 * (2 * spec.n * d + spec.n + d) + 20_000)


def _code_bytes(spec: AutoencoderSpec, rows: int) -> int:
    from sae_pipeline.autoencoders import recipe_of

    width = spec.k or round(spec.target_l0 or 16)
    if recipe_of(spec.recipe).encoder == "topk":
        width = min(spec.n, _CODE_WIDTHS * width)
    return _stored(rows, width * (4 + 4) + 3 * 4)


def _memory(study: Study, facts: Facts, site: Site, specs: dict[str, AutoencoderSpec]) -> int:
    """Peak of training: the members that train at once, the working memory of one, resident shards twice, the subject.

    On a CPU small members step side by side, but what each then needs is little.
    """
    from sae_pipeline.training.cost import groups_within, state_bytes, working_bytes

    d = facts.widths[site]
    groups = groups_within(specs, d, study.training.memory)
    state = max((sum(state_bytes(specs[key], d) for key in group) for group in groups), default=0)
    working = max((working_bytes(spec, d) for spec in specs.values()), default=0)
    pool = 2 * study.dataset.resident_shards * study.activations.shard_tokens * d * 4
    return state + working + pool + 4 * facts.n_params


def measured_gemm_flops(size: int = 1024, budget_s: float = 0.2) -> float:
    """Rate of a plain fp32 matrix product on this machine's default device, in FLOP/s."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device)
    a @ a
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < budget_s:
        (a @ a).sum().item()
        done += 1
    return 2.0 * size**3 * done / (time.perf_counter() - started)


def render_plan(plan: Plan, *, declared: bool = False) -> str:
    """The plan as a table for a terminal; `declared` says that the subject was not looked at."""
    note = "  (subject not reachable: sizes as the study declares them)" if declared else ""
    total = Row("all", sum(row.partitions for row in plan.rows), 0, plan.bytes_, plan.flops)
    return "\n".join(
        [
            f"Study {plan.study}{note}",
            *([f"  null control: {plan.null}"] if plan.null else []),
            *(f"  site {site}" for site in plan.sites),
            f"{'':34}{'partitions':>11}{'tokens':>10}{'on disk':>10}{'FLOP':>10}",
            *(_line(row) for row in (*plan.rows, total)),
            f"peak memory about {_human(plan.memory_bytes)}B; time about {_duration(plan.seconds)} "
            f"at {_human(plan.flops_per_s)}FLOP/s on this machine",
        ]
    )


def _line(row: Row) -> str:
    tokens = _human(row.tokens) if row.tokens else ""
    return f"{row.what:34}{row.partitions:>11,}{tokens:>10}{_human(row.bytes_) + 'B':>10}{_human(row.flops):>10}"


def _human(value: float) -> str:
    for size, suffix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.3g} "


def _duration(seconds: float) -> str:
    for size, name in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.0f} seconds"
