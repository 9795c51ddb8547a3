"""A failing gate stops the run before anything is published: one test per stage, each with a planted fault."""

import dagster as dg
import numpy as np
import pytest
import torch

from assets.publishing import asset_key
from sae_pipeline import autoencoders, dataset, evaluation, scaling, subjects, tokens, training


def _checks(bench, asset):
    return [
        record.event.dagster_event.event_specific_data
        for record in bench.instance.event_log_storage.get_asset_check_execution_history(
            check_key=dg.AssetCheckKey(asset_key(bench.graph, asset), "integrity"), limit=50
        )
    ]


def _assert_stopped(bench, failure, *, node, says, downstream):
    assert failure is not None and node in failure and says in failure, failure
    assert not bench.is_published(node)
    assert not bench.is_published(downstream)
    assert any(not check.passed for check in _checks(bench, node.split("/")[0]))
    records = bench.instance.fetch_materializations(asset_key(bench.graph, node.split("/")[0]), limit=50).records
    path = node.partition("/")[2]
    assert not [r for r in records if not path or str(r.partition_key).split("|")[::-1] == path.split("/")]


def _spoil_a_channel(monkeypatch):
    """From now on the merged moments say that channel 5 never changes."""
    build = dataset.build.merge_moments

    def spoiled(acts, n_rows):
        moments = build(acts, n_rows)
        moments.m2[5] = 0.0
        return moments

    monkeypatch.setattr(dataset.build, "merge_moments", spoiled)


def test_tokens_outside_the_vocabulary(bench, monkeypatch):
    build = tokens.build_tokens

    class Shifted:
        """The real tokenizer, but one id of every document lies outside the vocabulary."""

        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self._tokenizer, name)

        def encode_batch(self, texts):
            return [[*ids[:-1], 60_000] for ids in self._tokenizer.encode_batch(texts)]

    def spoiled(draft, config, corpora, tokenizer, **rest):
        return build(draft, config, corpora, Shifted(tokenizer), **rest)

    monkeypatch.setattr(tokens, "build_tokens", spoiled)
    bench.forget("tokens", "activations")
    _assert_stopped(
        bench, bench.run(), node="tokens", says="max_id is 60000", downstream=f"activations/{bench.graph.sites[0]}"
    )


def test_a_nan_in_the_activations(bench, monkeypatch):
    run = subjects.Subject.run

    def spoiled(self, ids_cl, sites):
        values = run(self, ids_cl, sites)
        return {site: x.clone().index_fill_(0, torch.tensor([3]), float("nan")) for site, x in values.items()}

    monkeypatch.setattr(subjects.Subject, "run", spoiled)
    site = bench.graph.sites[0]
    bench.forget("activations", "dataset")
    _assert_stopped(bench, bench.run(), node=f"activations/{site}", says="non_finite", downstream=f"dataset/{site}")


def test_an_evaluation_set_that_does_not_resume_exactly(bench, monkeypatch):
    resume = subjects.Subject.resume
    monkeypatch.setattr(subjects.Subject, "resume", lambda self, *given: resume(self, *given) + 1e-4)
    site = bench.graph.sites[0]
    bench.forget("evaluation_set", "codes")
    _assert_stopped(
        bench,
        bench.run(),
        node=f"evaluation_set/{site}",
        says="resume_max_abs_difference",
        downstream=f"codes/{site}/topk-n128-k4",
    )


def test_a_dataset_with_a_constant_channel(bench, monkeypatch):
    _spoil_a_channel(monkeypatch)
    site = bench.graph.sites[0]
    bench.forget("dataset", "autoencoder")
    _assert_stopped(
        bench,
        bench.run(),
        node=f"dataset/{site}",
        says="no channel is constant",
        downstream=f"autoencoder/{site}/topk-n128-k4",
    )


def test_one_spoiled_autoencoder_of_a_sweep(bench, monkeypatch):
    """The bad key is not published, the good ones of the same run are."""
    train = training.train

    def spoiled(members, *given, **rest):
        outcomes = train(members, *given, **rest)
        draft = members["topk-n256-k4"].draft
        made = autoencoders.Autoencoder.load(draft.path)
        made.W_dec[7] *= 2
        made.save(draft.path)
        return outcomes

    monkeypatch.setattr(training, "train", spoiled)
    site = bench.graph.sites[0]
    bench.forget("autoencoder", "codes")
    _assert_stopped(
        bench,
        bench.run(),
        node=f"autoencoder/{site}/topk-n256-k4",
        says="decoder_norm_error",
        downstream=f"codes/{site}/topk-n256-k4",
    )
    assert bench.is_published(f"autoencoder/{site}/topk-n128-k4")


def test_autoencoders_worse_than_a_limit(bench):
    strict = bench.with_settings("gates.nmse_max=0.01")
    strict.forget("autoencoder", "codes")
    failure = strict.run()
    assert "better than predicting the mean" in failure
    assert not strict.is_published(f"autoencoder/{bench.graph.sites[0]}/topk-n128-k4")


def test_a_divergent_autoencoder_says_so(bench):
    wild = bench.with_settings("autoencoders.grids.1={recipe: relu, n: 256, l1: 0.05, tag: wild, lr: {base: 1.0e+6}}")
    failure = wild.run()
    assert "relu-n256-l0.05-wild diverged" in failure and "lower its lr" in failure
    assert not wild.is_published(f"autoencoder/{bench.graph.sites[0]}/relu-n256-l0.05-wild")


def test_a_metric_with_an_infinite_figure(bench, monkeypatch):
    write = evaluation.write_metric

    def spoiled(draft, result):
        result.metrics.loc[0, "value"] = np.inf
        return write(draft, result)

    monkeypatch.setattr(evaluation, "write_metric", spoiled)
    site = bench.graph.sites[0]
    bench.forget("eval_reconstruction", "evaluation_table")
    _assert_stopped(
        bench,
        bench.run(),
        node=f"eval_reconstruction/{site}/topk-n128-k4",
        says="infinite",
        downstream=f"evaluation_table/{site}",
    )


def test_a_point_left_out_of_the_laws_without_a_reason(bench, monkeypatch):
    write = scaling.write_result

    def spoiled(draft, result):
        result.points.loc[0, "used"] = False
        return write(draft, result)

    monkeypatch.setattr(scaling, "write_result", spoiled)
    site = bench.graph.sites[0]
    bench.forget("scaling_laws", "report")
    _assert_stopped(bench, bench.run(), node=f"scaling_laws/{site}", says="unexplained", downstream="report")


def test_a_rejected_draft_is_set_aside_and_the_next_run_heals(bench, monkeypatch):
    site = bench.graph.sites[0]
    bench.forget("dataset")
    with monkeypatch.context() as patch:
        _spoil_a_channel(patch)
        assert bench.run() is not None
    directory = bench.graph.workspace.directory(bench.graph.workspace.lineage[f"dataset/{site}"])
    assert directory.with_name(f"{directory.name}.rejected").is_dir()
    assert bench.run() is None
    assert bench.is_published(f"dataset/{site}")


@pytest.mark.parametrize("override", ["subject.id=embedded/nothing", "corpora.0.source=no/such/folder"])
def test_bad_input_is_refused_before_any_run(bench, override):
    from sae_pipeline.store import PipelineError

    with pytest.raises(PipelineError, match=r"shipped|no/such"):
        bench.with_settings(override).run()
    assert bench.instance.get_runs_count() == 0
