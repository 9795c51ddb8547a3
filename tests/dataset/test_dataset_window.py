"""Activations under a window: the batches of `retain: all`, on a bounded disk, whatever a killed process left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_pipeline.activations import ACTS, ActivationError, Window, harvest, pinned_shards, summarise_shards
from sae_pipeline.activations.layout import shard_file_bytes
from sae_pipeline.activations.window import FOLDER
from sae_pipeline.dataset import Dataset, audit_frame, build_dataset
from sae_pipeline.store import Artefact, Busy, Draft, PipelineError
from sae_pipeline.study import ActivationsConfig, AutoencoderSpec
from sae_pipeline.subjects import Subject
from sae_pipeline.training import Member, train
from tests.activations.activation_doubles import POST, D, MemoryTokens, make_tokens, tiny_subject

RESIDENT, PREFIX, BATCH = 2, 100, 48
SHARD_BYTES = shard_file_bytes(64, D, "float32")


class Watched:
    """A subject that tells of every pass; `spoil` may change what it gives."""

    def __init__(self, subject: Subject, on_pass: Callable[[], None], spoil: Callable[[Tensor], Tensor] | None) -> None:
        self._subject, self._on_pass, self._spoil = subject, on_pass, spoil
        self.device, self.width = subject.device, subject.width

    def run(self, ids_cl: Tensor, sites: Sequence[Any]) -> dict[Any, Tensor]:
        self._on_pass()
        found = self._subject.run(ids_cl, sites)
        return {site: self._spoil(value) for site, value in found.items()} if self._spoil else found


class World:
    """One study's artefacts in a folder: activations by what `retain` says, and the dataset over them."""

    def __init__(self, path: Path, subject: Subject, tokens: MemoryTokens, retain: Any, prefix: int = PREFIX) -> None:
        self.path, self.subject, self.tokens = path, subject, tokens
        self.config = ActivationsConfig(
            dtype="float32", shard_tokens=64, micro_batch=5, retain=retain, statistics_prefix=prefix
        )
        self.activations = self._publish_activations()
        self.dataset = self.publish_dataset()
        self.passes: list[tuple[int, str, int]] = []
        self.stepping = False

    def _publish_activations(self) -> Artefact:
        with self._draft("activations", "a") as draft:
            pinned = pinned_shards(self.config, self.tokens)
            harvest(self.subject, self.tokens, {POST: draft}, self.config, shards=pinned)
            draft.keep(ACTS, len(pinned))
            return draft.publish(summarise_shards(draft))

    def publish_dataset(self, **options: Any) -> Artefact:
        contexts = self.tokens.train
        with self._draft("dataset", "d") as draft:
            build_dataset(
                draft,
                self.activations,
                normaliser="rms",
                seed=3,
                row_offsets=contexts.row_offsets,
                document_of_context=contexts.document,
                resident_shards=RESIDENT,
                statistics_prefix=self.config.statistics_rows,
                **options,
            )
            return draft.publish({})

    def _draft(self, stage: str, letter: str) -> Draft:
        return Draft.open(self.path / stage, stage=stage, key=str(POST), identity=letter * 64, lineage={})

    def window(self, spoil: Callable[[Tensor], Tensor] | None = None) -> Window:
        watched: Any = Watched(self.subject, self._on_pass, spoil)
        return Window(self.activations, POST, self.tokens, lambda: watched, self.config, resident_shards=RESIDENT)

    def _on_pass(self) -> None:
        assert not self.stepping, "the subject ran while the consumer was at work on a batch"
        self.passes.append((torch.get_num_threads(), torch.get_float32_matmul_precision(), self.scratch_bytes()))

    def scratch_bytes(self) -> int:
        """Bytes of shards, and of what may become one, in the scratch folder."""
        return sum(path.stat().st_size for path in (self.path / "activations" / FOLDER / ACTS / "c").rglob("*.*"))

    def n_resident(self) -> int:
        return len(list((self.path / "activations" / FOLDER / "commits" / ACTS).glob("*.json")))

    def batches(self, window: Window | None, first: int, n: int, prefetch: int = 2) -> list[Tensor]:
        found = []
        for batch in Dataset.open(self.dataset, self.activations, window).batches(BATCH, first, n, prefetch=prefetch):
            self.stepping = True
            assert batch.step == first + len(found)
            found.append(batch.x_bd)
            self.stepping = False
        return found


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def tokens() -> MemoryTokens:
    return make_tokens(120)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, subject: Subject, tokens: MemoryTokens) -> World:
    return World(tmp_path_factory.mktemp("all"), subject, tokens, "all")


@pytest.fixture
def bounded(tmp_path: Path, subject: Subject, tokens: MemoryTokens) -> Callable[..., World]:
    return lambda retain="none", prefix=PREFIX: World(tmp_path, subject, tokens, retain, prefix)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("shards", [4, 7, 1000, "none"])
def test_the_batches_are_those_of_all_and_the_disk_is_bounded(
    whole: World, bounded: Callable[..., World], shards: int | str, prefetch: int
) -> None:
    world = bounded("none" if shards == "none" else {"window": shards * SHARD_BYTES + 5})
    most = 4 if shards == "none" else int(shards)
    n, first = 2 * whole.tokens.train.n_rows // BATCH, 3  # across two epochs
    with world.window() as window:
        assert equal(world.batches(window, first, n, prefetch), whole.batches(None, first, n))
        assert world.n_resident() <= most and window.n_made > 0
        after_a_pass = window.n_made
        assert equal(world.batches(window, 0, 5, prefetch), whole.batches(None, 0, 5))
        window.end()
        assert (world.n_resident() == 0) == (shards == "none")
    assert max(n_bytes for *_, n_bytes in world.passes) <= (most - 1) * SHARD_BYTES  # and one shard in the making
    if shards == 1000:
        assert after_a_pass == window.n_made == len(range(*pinned_to_end(world)))


def pinned_to_end(world: World) -> tuple[int, int]:
    array = world.activations.array(ACTS)
    return array.n_kept, array.n_shards


def test_statistics_and_normaliser_follow_from_the_prefix_alone(whole: World, bounded: Callable[..., World]) -> None:
    world = bounded()
    for name in ("normaliser.json", "statistics.json", "order.json", "sample.npy"):
        assert world.dataset.file(name).read_bytes() == whole.dataset.file(name).read_bytes()
    statistics = Dataset.open(world.dataset, world.activations).statistics
    frame = audit_frame(world.dataset)
    assert statistics.count == 128 == frame["rows_expected"][0] < world.tokens.train.n_rows  # two shards of 64 rows
    exact = whole.activations.array(ACTS).read_float32(0, 128).astype("float64")
    assert statistics.mean_square_norm == pytest.approx((exact**2).sum(1).mean(), rel=1e-12)
    assert world.activations.summary["shards_left_to_training"] == pinned_to_end(world)[1] - 2


def test_a_null_dataset_takes_its_gaussian_from_the_prefix(bounded: Callable[..., World]) -> None:
    world = bounded()
    shutil.rmtree(world.path / "dataset")
    null = world.publish_dataset(null="gaussian_cov")
    frame = audit_frame(null)
    assert frame["covariance_rows"][0] == frame["rows"][0] == frame["rows_expected"][0] == 128
    assert frame["variance_error"][0] < 1e-6
    draws = [item.x_bd for item in Dataset.open(null, world.activations).batches(BATCH, 0, 40)]  # of any number
    assert len(draws) == 40 and all(bool(x_bd.isfinite().all()) for x_bd in draws)


def test_the_first_shards_stay_for_a_second_pass(bounded: Callable[..., World]) -> None:
    world = bounded({"window": 6 * SHARD_BYTES})
    per_epoch = world.tokens.train.n_rows // BATCH + 1
    with world.window() as window:
        world.batches(window, 0, per_epoch)
        first = window.n_made
        world.batches(window, 0, per_epoch)
        assert 0 < window.n_made - first < first
    with world.window() as window:  # and those that stayed are found by the next process
        world.batches(window, 0, per_epoch)
        assert window.n_made < first


def test_all_makes_what_a_window_did_not_publish_and_keeps_it(whole: World, bounded: Callable[..., World]) -> None:
    world = bounded()
    world.config = world.config.model_copy(update={"retain": "all"})  # no part of the identity: another study's wish
    n = world.tokens.train.n_rows // BATCH
    with world.window() as window:
        assert equal(world.batches(window, 0, n), whole.batches(None, 0, n))
        window.end()
    first, stop = pinned_to_end(world)
    assert world.n_resident() == window.n_made == stop - first


def test_passes_run_as_in_the_harvest_and_never_beside_a_step(bounded: Callable[..., World]) -> None:
    world = bounded()
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(1)
        with world.window() as window:
            torch.set_num_threads(2)
            torch.set_float32_matmul_precision("medium")
            assert len(world.batches(window, 0, 30)) == 30
            assert {(threads, precision) for threads, precision, _ in world.passes} == {(1, before[1])}
            assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_what_a_killed_process_left_is_bounded_and_used(whole: World, bounded: Callable[..., World]) -> None:
    world = bounded({"window": 8 * SHARD_BYTES})
    with world.window() as window:
        world.batches(window, 0, 12)
        made = window.n_made
    scratch = world.path / "activations" / FOLDER
    kept = sorted(int(path.stem) for path in (scratch / "commits" / ACTS).glob("*.json"))
    assert len(kept) >= 5
    (scratch / "commits" / ACTS / f"{kept[0]}.json").unlink()  # evicted: the record is gone, the file not yet
    (scratch / "made" / f"{kept[1]}.json").unlink()  # committed, not admitted yet
    (scratch / ACTS / "c" / str(kept[2]) / ".0.0123456789ab.tmp").write_bytes(b"0" * SHARD_BYTES)
    world.config = world.config.model_copy(update={"retain": "none"})  # and the study asks for less now
    with world.window() as window:
        assert world.n_resident() == 4 and world.scratch_bytes() == 0  # no file but whole shards
        files = [path for path in (scratch / ACTS / "c").rglob("*") if path.is_file()]
        assert len(files) == 4
        assert equal(world.batches(window, 0, 12), whole.batches(None, 0, 12))
        assert window.n_made < made


def test_damage_in_the_scratch_folder_mends_itself(whole: World, bounded: Callable[..., World]) -> None:
    world = bounded({"window": 1000 * SHARD_BYTES})
    n = world.tokens.train.n_rows // BATCH
    with world.window() as window:
        world.batches(window, 0, n)
        made = window.n_made
    cut, flipped, gone = sorted((world.path / "activations" / FOLDER / ACTS / "c").glob("*/0"))[:3]
    cut.write_bytes(cut.read_bytes()[:-7])
    changed = bytearray(flipped.read_bytes())
    changed[100] ^= 1
    flipped.write_bytes(changed)
    gone.unlink()
    with world.window() as window:
        assert equal(world.batches(window, 0, n), whole.batches(None, 0, n))
        assert window.n_made == 3 < made


def test_a_shard_made_again_with_other_bits_is_refused(
    whole: World, bounded: Callable[..., World], tmp_path: Path
) -> None:
    world = bounded()
    with world.window() as window:
        world.batches(window, 0, 20)
        window.end()
    with (
        world.window(lambda value: value * (1 + 2**-20)) as window,
        pytest.raises(ActivationError, match=r"made again and holds other bits.*number of threads.*delete"),
    ):
        world.batches(window, 0, 20)
    assert world.n_resident() == 0  # the shard that differed is not there to be read by the next process
    shutil.rmtree(tmp_path / "activations" / FOLDER)  # as the error says
    with world.window() as window:
        assert equal(world.batches(window, 0, 20), whole.batches(None, 0, 20))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda value: value.clone().fill_(torch.nan), "hold a NaN or an infinite value"),
        (lambda value: value * torch.arange(D).clamp(max=1), "1 of its channels never change"),
    ],
)
def test_a_shard_that_the_gate_would_stop_reaches_no_batch(
    bounded: Callable[..., World], spoil: Callable[[Tensor], Tensor], why: str
) -> None:
    world = bounded()
    with world.window(spoil) as window, pytest.raises(ActivationError, match=f"shard [0-9]+: .*{why}"):
        world.batches(window, 0, 40)
    assert world.n_resident() == 0


def test_one_process_at_a_time_and_nothing_without_a_window(bounded: Callable[..., World]) -> None:
    world = bounded()
    with world.window(), pytest.raises(Busy, match="is working on it"):
        world.window()
    with pytest.raises(PipelineError, match=r"only the first 2 of [0-9]+ are, because activations.retain"):
        world.batches(None, 0, 40)
    assert world.activations.verify() == []
    shutil.rmtree(world.path / "dataset")
    with pytest.raises(PipelineError, match="is not kept"):
        world.publish_dataset(copy=True)


def test_a_window_smaller_than_two_groups_is_refused_with_the_least_that_will_do(bounded: Callable[..., World]) -> None:
    world = bounded({"window": 4 * SHARD_BYTES - 1})
    with pytest.raises(ActivationError, match=f"holds 3 shards.*Raise the window to {4 * SHARD_BYTES:,}"):
        world.window()


def test_the_shards_made_before_memory_ran_short_keep_their_micro_batch(bounded: Callable[..., World]) -> None:
    world = bounded()
    with world.window() as window:
        world.batches(window, 0, 10)
        window.end()
    scratch = world.path / "activations" / FOLDER
    (scratch / "harvest.json").write_text(json.dumps({"micro_batch": 2, "begun_with": 5}))
    with world.window() as window:
        world.batches(window, 0, 30)
    sizes = {json.loads(path.read_text())["info"]["micro_batch"] for path in (scratch / "made").iterdir()}
    assert sizes == {2, 5} and json.loads((scratch / "harvest.json").read_text())["micro_batch"] == 2


def trained(world: World, folder: Path, window: Window | None, stop_after: int = 10**9) -> bytes | None:
    spec = AutoencoderSpec(
        key="topk-n32-k4", recipe="topk", n=32, k=4, batch=BATCH, tokens=BATCH * 30, lr=1e-3, ema=0.9, auxk_k=8,
        auxk_alpha=1 / 32, dead_after_tokens=BATCH * 6,
    )  # fmt: skip
    asked = iter(range(10**9))
    with Draft.open(folder, stage="autoencoder", key=spec.key, identity="0" * 64, lineage={}) as draft:
        dataset = Dataset.open(world.dataset, world.activations, window)
        outcome = train({"a": Member(spec, draft)}, dataset, should_stop=lambda: next(asked) >= stop_after)["a"]
        return (folder / "autoencoder.safetensors").read_bytes() if outcome.status == "finished" else None


def test_an_autoencoder_trained_and_resumed_under_a_window_is_that_of_all(
    whole: World, bounded: Callable[..., World], tmp_path: Path
) -> None:
    world = bounded()
    with world.window() as window:
        assert trained(world, tmp_path / "sae", window, stop_after=11) is None
    with world.window() as window:
        assert trained(world, tmp_path / "sae", window) == trained(whole, tmp_path / "whole", None)
