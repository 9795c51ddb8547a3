from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_doubles import (
    EVALUATION_ID,
    autoencoder,
    constant_autoencoder,
    make_codes,
    make_inputs,
    normalised_rows,
    open_draft,
)

from sae_pipeline.evaluation import METRICS, CacheMismatch, EvaluationError, audit_codes, build_codes, codes_cache


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_cached_codes_equal_dense_encoding(evaluation_set, tmp_path, recipe, k):
    made = autoencoder(recipe, k=k)
    cache = make_codes(made, evaluation_set, tmp_path / "codes")
    u_td, _, _ = normalised_rows(made, evaluation_set)
    expected_tn = made.encode(u_td).dense(made.config.n)
    found_tn = torch.cat(
        [cache.codes(a, min(a + 37, cache.n_rows)).dense(made.config.n) for a in range(0, len(u_td), 37)]
    )
    assert torch.equal(found_tn > 0, expected_tn > 0)
    assert torch.allclose(found_tn, expected_tn, atol=1e-6)
    u, u_hat = u_td.double(), (expected_tn @ made.W_dec + made.b_pre).double()
    assert cache.scalars("err2") == pytest.approx((u - u_hat).square().sum(1).numpy(), rel=1e-4)
    assert cache.scalars("x2") == pytest.approx((u - made.b_pre).square().sum(1).numpy(), rel=1e-6)
    assert (cache.scalars("l0") == (expected_tn > 0).sum(1).numpy()).all()


def test_candidates_beyond_k_are_kept_in_order(evaluation_set, tmp_path):
    made = autoencoder(n=48, k=4)
    cache = make_codes(made, evaluation_set, tmp_path / "codes")
    assert (cache.k, cache.width) == (4, 16)
    pre_tn = made.pre_activations(normalised_rows(made, evaluation_set)[0]).relu()
    values = cache.candidates(0, cache.n_rows).values
    assert torch.allclose(values, pre_tn.sort(dim=1, descending=True).values[:, :16], atol=1e-6)
    assert (values[:, 4:] > 0).any(), "candidates that are never positive test nothing"
    assert make_codes(autoencoder(n=8, k=4), evaluation_set, tmp_path / "narrow").width == 8


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_an_interrupted_cache_continues_to_the_same_bytes(evaluation_set, tmp_path, recipe, k, monkeypatch):
    """Small shards and blocks: 250 rows make several of each; the second attempt finds some committed."""
    for name, value in {"_SHARD_ROWS": 64, "_SHARD_PAIRS": 1024, "_CHUNK_ROWS": 16, "_BLOCK_ROWS": (16, 32)}.items():
        monkeypatch.setattr(codes_cache, name, value)
    made = autoencoder(recipe, k=k)
    whole = make_codes(made, evaluation_set, tmp_path / "whole")

    class Stop(Exception):
        pass

    class StopLater:
        calls = 0

        def update(self, done, total, unit, **info):
            self.calls += 1
            if self.calls == (5 if k else 11):
                raise Stop

    with open_draft(tmp_path / "resumed") as draft, pytest.raises(Stop):
        build_codes(draft, made, evaluation_set, sae_id="a" * 64, evaluation_id=EVALUATION_ID, progress=StopLater())
    resumed = make_codes(made, evaluation_set, tmp_path / "resumed")
    for a in range(0, whole.n_rows, 50):
        one, two = (cache.codes(a, min(a + 50, whole.n_rows)) for cache in (whole, resumed))
        assert torch.equal(one.values, two.values) and torch.equal(one.indices, two.indices)
    assert (whole.scalars("err2") == resumed.scalars("err2")).all()
    assert whole.n_rows > 3 * 64


def test_autoencoder_that_never_fires_has_empty_codes(evaluation_set, tmp_path):
    cache = make_codes(constant_autoencoder(torch.zeros(16)), evaluation_set, tmp_path / "codes")
    codes = cache.codes(0, cache.n_rows)
    assert len(codes) == cache.n_rows and len(codes.values) == 0
    assert cache.scalars("l0").max() == 0


def test_ragged_codes_have_no_candidates(evaluation_set, tmp_path):
    cache = make_codes(autoencoder("relu", k=None), evaluation_set, tmp_path / "codes")
    with pytest.raises(EvaluationError, match="no candidates"):
        cache.candidates(0, 3)


def test_codes_of_something_else_are_refused(evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes")
    metric = METRICS["density"]
    with pytest.raises(CacheMismatch, match="made for autoencoder aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        metric.run(replace(inputs, sae_id="b" * 64))
    with pytest.raises(CacheMismatch, match="made for evaluation set"):
        metric.run(replace(inputs, evaluation_id="f" * 64))
    with pytest.raises(CacheMismatch, match="number of latents 48, not 32"):
        metric.run(replace(inputs, autoencoder=autoencoder(n=32)))


def test_autoencoder_of_another_width_is_refused(evaluation_set, tmp_path):
    made = autoencoder()
    made.config = replace(made.config, d=32)
    with open_draft(tmp_path / "codes") as draft, pytest.raises(EvaluationError, match="reads 32 values a token"):
        build_codes(draft, made, evaluation_set, sae_id="a", evaluation_id="e")


def test_audit_counts_what_must_not_be(evaluation_set, tmp_path):
    made = autoencoder()
    with open_draft(tmp_path / "codes") as draft:
        build_codes(draft, made, evaluation_set, sae_id="a", evaluation_id="e")
        sound = audit_codes(draft).iloc[0]
    assert sound["damage"] == "" and sound["rows"] == sound["rows_expected"] == evaluation_set.n_rows
    assert sound["max_l0"] <= sound["k"] == 4
    assert sound[["non_finite", "out_of_range", "unsorted", "l0_mismatch"]].sum() == 0

    made.W_dec[:, 0] = np.nan
    with open_draft(tmp_path / "broken") as draft:
        build_codes(draft, made, evaluation_set, sae_id="a", evaluation_id="e")
        assert audit_codes(draft).iloc[0]["non_finite"] > 0


def test_audit_names_a_damaged_shard(evaluation_set, tmp_path):
    with open_draft(tmp_path / "codes") as draft:
        build_codes(draft, autoencoder(), evaluation_set, sae_id="a", evaluation_id="e")
        shard = draft.array("values").shard_path(0)
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
        assert audit_codes(draft).iloc[0]["damage"] != ""
