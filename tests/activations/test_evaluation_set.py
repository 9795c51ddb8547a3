"""The evaluation set against brute force: Hugging Face's model, a hook of the test's own, float64 losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from activation_doubles import POST, D, MemoryContexts, MemoryTokens, make_contexts, open_draft
from torch import Tensor

from sae_pipeline.activations import (
    ActivationError,
    EvaluationSet,
    audit_evaluation_set,
    build_evaluation_set,
    clean_scores,
    contexts_for_rows,
    scoring,
    spliced_scores,
)
from sae_pipeline.store import Draft
from sae_pipeline.study import Site
from sae_pipeline.subjects import Subject

N_TOKENS = 120
ARRAYS = (
    *("residuals", "ids", "mask", "length", "document", "clean_ce", "clean_logsumexp"),
    *("zero_ce", "zero_kl", "mean_ce", "mean_kl"),
)


def build(
    subject: Subject, tokens: MemoryTokens, draft: Draft, site: Site = POST, micro_batch: int = 4
) -> dict[str, Any]:
    return build_evaluation_set(subject, tokens, site, draft, n_tokens=N_TOKENS, micro_batch=micro_batch)


def spliced_logits(subject: Subject, ids_1l: Tensor, mask_l: Tensor, fill_d: Tensor) -> Tensor:
    """Logits [l, V] in float64 of the model whose residual after block 1 is replaced where `mask_l`."""

    def splice(_: Any, __: Any, output: Tensor) -> Tensor:
        return torch.where(mask_l[None, :, None], fill_d, output)

    handle = subject._blocks[POST.layer].register_forward_hook(splice)
    with torch.no_grad():
        logits = subject._model(ids_1l).logits[0].double()
    handle.remove()
    return logits


def brute_force(subject: Subject, contexts: MemoryContexts, n: int, mean: npt.NDArray[np.float64]) -> dict[Any, Any]:
    """(document, ablation) → [ce_sum, kl_sum, n], one unpadded context at a time."""
    sums: dict[Any, Any] = {}
    fills = {"zero": torch.zeros(D), "mean": torch.from_numpy(mean).float()}
    for c in range(n):
        length = int(contexts.lengths[c])
        ids_1l = torch.from_numpy(contexts.ids_nl[c : c + 1, :length])
        mask_l = torch.from_numpy(contexts.mask_nl[c, :length])
        clean = spliced_logits(subject, ids_1l, torch.zeros_like(mask_l), fills["zero"])
        for ablation, fill_d in fills.items():
            ablated = spliced_logits(subject, ids_1l, mask_l, fill_d)
            scored = torch.nonzero(mask_l[: length - 1])[:, 0]
            if len(scored):
                p, q = (torch.distributions.Categorical(logits=logits[scored]) for logits in (clean, ablated))
                kl, log_q = torch.distributions.kl_divergence(p, q), q.log_prob(ids_1l[0, scored + 1])
                entry = sums.setdefault((int(contexts.document[c]), ablation), np.zeros(3))
                entry += [-float(log_q.sum()), float(kl.sum()), len(scored)]
    return sums


def test_references_equal_brute_force(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        summary = build(subject, tokens, draft)
        evaluation_set = EvaluationSet.open(draft.publish(summary))
    n = contexts_for_rows(tokens.held_out, N_TOKENS)
    assert evaluation_set.n_contexts == n < tokens.held_out.n

    rows = np.concatenate([evaluation_set.rows(a, b)[0].numpy() for a, b in evaluation_set.micro_batches()])
    assert len(rows) == evaluation_set.n_rows == tokens.held_out.mask_nl[:n].sum()
    np.testing.assert_allclose(evaluation_set.mean_d, rows.astype(np.float64).mean(axis=0), rtol=1e-9, atol=1e-9)

    expected = brute_force(subject, tokens.held_out, n, evaluation_set.mean_d)
    got = {
        (document, ablation): sums for document, ablation, *sums in evaluation_set.references.itertuples(index=False)
    }
    assert got.keys() == expected.keys()
    for key, sums in expected.items():
        np.testing.assert_allclose(got[key], sums, rtol=1e-4, atol=1e-4, err_msg=str(key))
    assert summary["n_scored"] == sum(sums[2] for key, sums in expected.items() if key[1] == "zero")
    total_kl = sum(sums[1] for key, sums in expected.items() if key[1] == "mean")
    assert summary["mean_kl"] == pytest.approx(total_kl / summary["n_scored"], rel=1e-4)
    assert list(evaluation_set.references.columns) == ["document", "ablation", "ce_sum", "kl_sum", "n"]


def test_clean_scores_and_positions_equal_the_models(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        summary = build(subject, tokens, draft)
        evaluation_set = EvaluationSet(draft)
        held_out, n = tokens.held_out, evaluation_set.n_contexts
        clean_ce = np.full((n, evaluation_set.context), np.nan)
        for c in range(n):
            length = int(held_out.lengths[c])
            ids_l = torch.from_numpy(held_out.ids_nl[c, :length])
            with torch.no_grad():
                logits = subject._model(ids_l[None]).logits[0].double()
            log_p = torch.log_softmax(logits, dim=-1)
            clean_ce[c, : length - 1] = -log_p[:-1].gather(1, ids_l[1:, None])[:, 0].numpy()
            np.testing.assert_allclose(
                evaluation_set.clean_logsumexp[c, :length], logits.logsumexp(dim=-1).numpy(), rtol=1e-5, atol=1e-5
            )
        np.testing.assert_allclose(evaluation_set.clean_ce, clean_ce, rtol=1e-4, atol=1e-5)
        scored = evaluation_set.scored(0, n).numpy()
        assert (scored == (held_out.mask_nl[:n] & np.isfinite(clean_ce))).all()
        assert summary["clean_ce"] == pytest.approx(clean_ce[scored].mean(), rel=1e-5)

        np.testing.assert_array_equal(evaluation_set.ids(3, 9).numpy(), held_out.ids_nl[3:9])
        np.testing.assert_array_equal(evaluation_set.mask(3, 9).numpy(), held_out.mask_nl[3:9])
        x_rd, document_r, position_r = evaluation_set.rows(3, 9)
        context_r, expected_position_r = np.nonzero(held_out.mask_nl[3:9])
        np.testing.assert_array_equal(document_r, held_out.document[3:9][context_r])
        np.testing.assert_array_equal(position_r, expected_position_r)
        residuals = evaluation_set.residuals(3, 9)
        assert torch.equal(x_rd, residuals[context_r, position_r])
        direct = subject.run(torch.from_numpy(held_out.ids_nl[3:9]), [POST])[POST]
        torch.testing.assert_close(residuals, direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["resid_pre", "resid_mid", "attn_out", "mlp_mid"])
def test_splicing_the_untouched_activation_changes_no_bit(
    where: str, subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    site = Site("tiny", 1, where)
    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        assert build(subject, tokens, draft, site)["resume_max_abs_difference"] == 0
        evaluation_set = EvaluationSet(draft)
        for a, b in evaluation_set.micro_batches():
            ids_cl = evaluation_set.ids(a, b)
            clean = subject.logits(ids_cl)
            ce_cl, kl_cl = spliced_scores(clean, subject.resume(site, evaluation_set.residuals(a, b), ids_cl), ids_cl)
            scored = evaluation_set.scored(a, b)
            assert not kl_cl.any()
            np.testing.assert_array_equal(ce_cl[scored].numpy(), evaluation_set.clean_ce[a:b][scored.numpy()])


def test_a_killed_build_resumes_bit_equal(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_pipeline.activations.evaluation_builder._SHARD_BYTES", 1)  # a shard per micro-batch
    with open_draft(tmp_path / "whole", "evaluation_set") as whole:
        build(subject, tokens, whole)
        expected = {name: whole.array(name).read(0, whole.array(name).n_rows) for name in ARRAYS}
        assert whole.array("residuals").n_shards >= 4
    for dies_at in (2, 4, 5):  # in the clean pass, at its end, among the ablations
        with monkeypatch.context() as patch, open_draft(tmp_path / "killed", "evaluation_set") as killed:
            calls, resume = iter(range(1, 10_000)), subject.resume

            def dying(*arguments: Any, calls: Any = calls, at: int = dies_at, resume: Any = resume) -> Tensor:
                if next(calls) == at:
                    raise KeyboardInterrupt
                return resume(*arguments)

            patch.setattr(subject, "resume", dying)
            with pytest.raises(KeyboardInterrupt):
                build(subject, tokens, killed)
    with open_draft(tmp_path / "killed", "evaluation_set") as resumed:
        summary = build(subject, tokens, resumed, micro_batch=17)  # the one it was begun with stays
        assert summary["micro_batch"] == 4
        for name, values in expected.items():
            np.testing.assert_array_equal(resumed.array(name).read(0, len(values)), values)


def test_the_audit_of_a_sound_set(subject: Subject, tokens: MemoryTokens, tmp_path: Path) -> None:
    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        summary = build(subject, tokens, draft)
        frame = audit_evaluation_set(draft)
    (row,) = frame.to_dict("records")
    assert {name: row[name] for name in summary} == summary
    assert row["rows_masked"] == row["n_rows"] >= N_TOKENS
    assert (row["non_finite"], row["non_finite_scores"], row["negative_kl"]) == (0, 0, 0)
    assert (row["documents_split"], row["damage"], row["resume_max_abs_difference"]) == (0, "", 0)
    assert min(row["zero_kl"], row["mean_kl"]) > 0


def test_the_audit_shows_damage_and_non_finite_values(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subject.run

    def spoilt(ids_cl: Tensor, sites: Any) -> Any:
        values = {site: value.clone() for site, value in run(ids_cl, sites).items()}
        values[POST][0, 2, 0] = torch.nan
        return values

    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        monkeypatch.setattr(subject, "run", spoilt)
        build(subject, tokens, draft)
        frame = audit_evaluation_set(draft)
        assert frame["non_finite"][0] > 0
        assert frame["non_finite_scores"][0] > 0
        path = draft.array("ids").shard_path(0)
        path.write_bytes(path.read_bytes()[:-1])
        damaged = audit_evaluation_set(draft)
        assert damaged["damage"][0].startswith("ids: ")
        assert damaged.columns.tolist() == frame.columns.tolist()


def test_progress_reaches_the_end_and_empty_splits_are_refused(
    subject: Subject, tokens: MemoryTokens, tmp_path: Path
) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple[float, float]] = []

        def update(self, done: float, total: float, unit: str, **info: object) -> None:
            self.seen.append((done, total))

    recorder = Recorder()
    with open_draft(tmp_path / "a", "evaluation_set") as draft:
        build_evaluation_set(subject, tokens, POST, draft, n_tokens=N_TOKENS, micro_batch=4, progress=recorder)
    assert recorder.seen == sorted(recorder.seen) and recorder.seen[-1][0] == recorder.seen[-1][1]
    empty = make_contexts(3, 1)
    empty.mask_nl[:] = False
    with open_draft(tmp_path / "b", "evaluation_set") as draft, pytest.raises(ActivationError, match="held-out split"):
        build(subject, MemoryTokens(empty, empty), draft)


@pytest.mark.parametrize("chunk_values", [1, 70, 1 << 22])
def test_scores_equal_float64_whatever_the_chunks(chunk_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_CHUNK_VALUES", chunk_values)
    generator = torch.Generator().manual_seed(5)
    clean, other = (6 * torch.randn(3, 7, 30, generator=generator) for _ in range(2))
    clean[0, 0, 0], other[0, 0, 0] = 120.0, 118.0  # softmax first and log afterwards gives NaN here
    ids_cl = torch.randint(0, 30, (3, 7), generator=generator)
    p, q = (torch.distributions.Categorical(logits=logits.double()) for logits in (clean, other))
    ce_cl, logsumexp_cl = clean_scores(clean, ids_cl)
    spliced_ce_cl, kl_cl = spliced_scores(clean, other, ids_cl)
    torch.testing.assert_close(kl_cl.double(), torch.distributions.kl_divergence(p, q), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logsumexp_cl.double(), clean.double().logsumexp(-1), rtol=1e-6, atol=1e-6)
    for got, distribution in ((ce_cl, p), (spliced_ce_cl, q)):
        expected = -distribution.log_prob(ids_cl.roll(-1, 1))
        torch.testing.assert_close(got[:, :-1].double(), expected[:, :-1], rtol=1e-5, atol=1e-5)
        assert got[:, -1].isnan().all()
