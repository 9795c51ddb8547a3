"""A folder of text that grows, through Dagster: only new shards are made, the rest follows, old versions stay whole."""

import shutil
from dataclasses import dataclass, field

import dagster as dg
import numpy as np
import pytest

import sae_pipeline.activations
from assets.automation import job_assets
from assets.following import corpora_changes
from assets.launching import backfill
from resources import StudyGraph
from sae_pipeline.activations import taken_over
from sae_pipeline.dataset.build import merge_moments
from sae_pipeline.planning.earlier import bytes_kept
from sae_pipeline.planning.staleness import explain
from sae_pipeline.store import Artefact, PipelineError
from sae_pipeline.store.garbage import Policy, survey
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Tokens
from tests.pipeline.conftest import Bench

SITE = "code.0.resid_post"
STUDY = """\
study: growing
subject: {alias: code, id: embedded/code-medium, dtype: float32, device: cpu}
corpora:
  - {name: words, source: FOLDER/corpus}
tokens: {context: 64, train: 20k, held_out: 2k}
sites:
  code.0.resid_post: {}
activations: {dtype: float16, shard_tokens: 4Ki, micro_batch: 16}
dataset: {resident_shards: 2, sample_rows: 256}
autoencoders:
  defaults:
    batch: 128
    tokens: 1280
    schedule: {warmup: 2}
    dead_after_tokens: 500
  grids:
    - {recipe: topk, n: 32, k: 4}
evaluation:
  tokens: 400
  bootstrap: {resamples: 20}
  metrics: {reconstruction: {}}
scaling: {targets: [nmse], hold_out: none, resamples: 20}
"""
FILES = 24
DATA = ("tokens", "activations", "evaluation_set", "dataset")


def words(seed, n=90):
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(400, size=n))


@dataclass
class Growing:
    """The study, its corpus, and the contexts that the model was run on while shards were made."""

    folder: object
    instance: dg.DagsterInstance
    contexts: list = field(default_factory=list)

    @property
    def bench(self):
        """Everything looked at anew, as a new process would."""
        study = self.folder / "study.yaml"
        return Bench(StudyGraph.read(study, (), self.folder / "outputs"), self.instance)

    @property
    def work(self):
        return self.bench.graph.workspace

    def add(self, name, text):
        (self.folder / "corpus" / name).write_text(text)

    def run(self):
        """Run the study; returns the number of contexts that shards were made from, and the Dagster runs."""
        self.contexts.clear()
        before = self.instance.get_runs_count()
        assert self.bench.run() is None
        return sum(self.contexts), self.instance.get_runs_count() - before

    def make(self, asset):
        """Make what one asset lacks, and nothing that follows from it."""
        bench = self.bench
        assert backfill(bench.definitions(), bench.graph, self.instance, bench.graph.workspace.stale({asset})) == []

    def versions(self):
        return {name: Artefact.open(self.work.outputs.root / where) for name, where in self.work.pointers.items()}


@pytest.fixture(scope="module")
def counting():
    """Count contexts where shards are harvested, and nowhere else."""
    growing, inside = [], []
    harvest, run = sae_pipeline.activations.harvest, Subject.run

    def counted_harvest(*arguments, **options):
        inside.append(True)
        try:
            return harvest(*arguments, **options)
        finally:
            inside.pop()

    def counted_run(self, ids_cl, sites):
        if inside:
            growing.append(len(ids_cl))
        return run(self, ids_cl, sites)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae_pipeline.activations, "harvest", counted_harvest)
        patch.setattr(Subject, "run", counted_run)
        yield growing


@pytest.fixture(scope="module")
def growing(tmp_path_factory, counting):
    """The study after one run over some files. The tests below follow one another, as time does."""
    folder = tmp_path_factory.mktemp("growing")
    for name in ("home", "corpus"):
        (folder / name).mkdir()
    (folder / "study.yaml").write_text(STUDY.replace("FOLDER", str(folder)))
    with dg.instance_for_test(temp_dir=str(folder / "home")) as instance:
        growing = Growing(folder, instance, counting)
        for i in range(FILES):
            growing.add(f"m{i}.txt", words(i))
        n_contexts, _ = growing.run()
        assert n_contexts >= Tokens.open(growing.work.artefact("tokens")).split("train").n
        yield growing


@pytest.fixture(scope="module")
def added(growing):
    """Two files more, nothing run yet: what was in use, why what is stale, and what the sensor requests twice."""
    before = growing.versions()
    growing.add("a.txt", words(100, 200))
    growing.add("z.txt", words(101))
    work = growing.work
    reasons = {node.name: explain(node, work.outputs, work.pointers).reasons for node in work.stale()}
    return before, reasons, [corpora_changes(growing.bench.graph, growing.instance) for _ in range(2)]


@pytest.fixture(scope="module")
def grown(growing, added):
    """In use before and after the run that followed; the contexts it ran the model on; its Dagster runs."""
    n_contexts, runs = growing.run()
    return added[0], growing.versions(), n_contexts, runs


def test_new_text_makes_everything_stale_and_why_says_what_is_kept(growing, added):
    _, reasons, _ = added
    assert set(reasons) == set(growing.work.lineage.nodes)
    why = reasons["tokens"]
    assert any(line.startswith(f"config.corpora[words].content.files: {FILES} → {FILES + 2}") for line in why)
    assert sum(line.startswith("continues the version in use") for line in why) == 1
    assert not any("None" in line for line in why)


def test_shards_that_are_kept_need_no_room(growing, added):
    work, old = growing.work, added[0][f"activations/{SITE}"]
    kept = {node.name: bytes_kept(work.lineage, node, work.outputs, work.pointers) for node in work.lineage}
    whole = [old.array("acts").commit(i)["bytes"] for i in range(old.array("acts").n_shards - 1)]
    assert kept.pop(f"activations/{SITE}") == pytest.approx(sum(whole), rel=0.1)
    assert set(kept.values()) == {0}


def test_the_sensor_requests_the_build_once(growing, added, grown):
    (first,), (second,) = (result.run_requests for result in added[2])
    assert first.run_key == second.run_key  # Dagster takes a key once
    assert grown[1]["tokens"].identity in first.run_key
    assert {key.path[-1] for key in first.asset_selection} == set(DATA)
    now = corpora_changes(growing.bench.graph, growing.instance)
    assert not now.run_requests and now.skip_reason.skip_message == "the corpora are as they were"


def test_only_new_shards_are_made(growing, grown):
    before, after, n_contexts, runs = grown
    old, new = before[f"activations/{SITE}"], after[f"activations/{SITE}"]
    kept = old.array("acts").n_shards - 1
    assert kept >= 10
    assert taken_over(new) == {old.identity: list(range(kept))}
    assert new.summary["shards_taken_over"] == kept
    contexts = Tokens.open(after["tokens"]).split("train")
    made = new.array("acts").n_rows - kept * new.array("acts").shard_rows
    assert made / 64 < n_contexts < 1.5 * made / 64 + 3 < contexts.n / 2
    assert runs == len(job_assets(growing.bench.graph))


def test_the_dataset_is_a_new_version_with_the_statistics_of_all_rows(grown):
    before, after, _, _ = grown
    assert all(before[name].identity != after[name].identity for name in after)
    new = after[f"activations/{SITE}"].array("acts")
    rows = new.read_float32(0, new.n_rows)
    statistics = after[f"dataset/{SITE}"].read_json("statistics.json")
    assert statistics["count"] == new.n_rows == after[f"dataset/{SITE}"].summary["rows"]
    np.testing.assert_allclose(merge_moments(new).mean, rows.astype(np.float64).mean(axis=0), rtol=1e-9, atol=1e-9)
    assert Tokens.open(after["tokens"]).split("train").n_rows == new.n_rows


def test_old_versions_stay_whole_and_evaluation_stays_comparable(growing, grown):
    before, after, _, _ = grown
    for artefact in before.values():
        assert Artefact.open(artefact.path).verify() == []
    garbage = survey(growing.work.outputs, Policy(older_than_s=0)).garbage
    assert before["tokens"].path not in {item.path for item in garbage}  # making the new ones again would need them
    sets = [versions[f"evaluation_set/{SITE}"] for versions in (before, after)]
    for name in sets[0].arrays:
        a, b = (artefact.array(name) for artefact in sets)
        np.testing.assert_array_equal(a.read(0, a.n_rows), b.read(0, b.n_rows))


def test_a_second_run_does_nothing(growing, grown):
    _, after, _, _ = grown
    assert growing.run() == (0, 0)
    assert {name: artefact.identity for name, artefact in growing.versions().items()} == {
        name: artefact.identity for name, artefact in after.items()
    }


def test_deleting_the_old_version_leaves_the_new_one_and_making_it_in_full_changes_no_bit(growing, grown):
    before, after, _, _ = grown
    new = after[f"activations/{SITE}"]
    shards = [new.array("acts").shard_path(i).read_bytes() for i in range(new.array("acts").n_shards)]
    aside = growing.folder / "aside"
    before[f"activations/{SITE}"].path.rename(aside)
    assert new.verify() == []
    shutil.rmtree(new.path)
    n_contexts, _ = growing.run()
    assert n_contexts >= Tokens.open(after["tokens"]).split("train").n
    again = growing.versions()[f"activations/{SITE}"]
    assert again.identity == new.identity and taken_over(again) == {}
    assert [again.array("acts").shard_path(i).read_bytes() for i in range(len(shards))] == shards
    aside.rename(before[f"activations/{SITE}"].path)


def test_a_third_version_goes_on_from_the_second(growing, grown):
    _, second, _, _ = grown
    growing.add("more.txt", words(102, 300))
    assert growing.work.lineage["tokens"].record["continues"] == second["tokens"].identity
    growing.make("tokens")
    growing.make("activations")
    third = growing.versions()
    kept = second[f"activations/{SITE}"].array("acts").n_shards - 1
    assert taken_over(third[f"activations/{SITE}"]) == {
        second[f"activations/{SITE}"].identity: list(range(kept)),
    }


def test_going_back_makes_nothing_and_a_changed_file_begins_afresh(growing, grown):
    _, second, _, _ = grown
    third = growing.versions()["tokens"]
    (growing.folder / "corpus" / "more.txt").rename(growing.folder / "more.txt")
    assert growing.work.lineage["tokens"].identity == second["tokens"].identity
    growing.add("other.txt", words(103))  # in its place: the second version can be continued, the third cannot
    assert growing.work.lineage["tokens"].record["continues"] == second["tokens"].identity
    (growing.folder / "corpus" / "other.txt").unlink()
    assert growing.run()[0] == 0
    assert growing.versions()["tokens"].identity == second["tokens"].identity
    (growing.folder / "more.txt").rename(growing.folder / "corpus" / "more.txt")
    fourth = growing.work.lineage["tokens"]
    assert fourth.identity == third.identity  # the same text after the same version is the same again
    growing.add("m3.txt", words(3) + " edited")
    assert "continues" not in growing.work.lineage["tokens"].record
    growing.add("m3.txt", words(3))


def test_tokens_that_are_lost_are_made_again_and_damaged_ones_are_named(growing, grown):
    _, second, _, _ = grown
    path = second["tokens"].path
    (growing.folder / "corpus" / "more.txt").unlink()
    path.rename(growing.folder / "lost")
    assert growing.work.lineage["tokens"].identity == second["tokens"].identity
    (growing.folder / "lost").rename(path)
    documents = path / "documents.parquet"
    content = documents.read_bytes()
    documents.write_bytes(content[:-1])
    assert growing.work.lineage["tokens"].identity == second["tokens"].identity
    growing.add("new.txt", words(104))
    with pytest.raises(PipelineError, match=r"documents.parquet.*nothing can go on from them"):
        growing.bench.run()
    documents.write_bytes(content)
    assert growing.work.lineage["tokens"].record["continues"] == second["tokens"].identity
