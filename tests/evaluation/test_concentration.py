import numpy as np
import pytest
import torch
from evaluation_doubles import D, autoencoder, constant_autoencoder, make_inputs, normalised_rows, value_of

from sae_pipeline.autoencoders import Codes
from sae_pipeline.evaluation import METRICS, concentration

METRIC = METRICS["concentration"]


def by_hand(z_n):
    """Of one dense code."""
    z, n = z_n[z_n > 0], len(z_n)
    ratio = z.sum() / np.sqrt((z**2).sum())
    share = z / z.sum()
    return {
        "effective_l0": ratio**2,
        "entropy": -(share * np.log(share)).sum(),
        "largest_share": share.max(),
        "hoyer": (np.sqrt(n) - ratio) / (np.sqrt(n) - 1),
    }


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_means_over_tokens_are_those_by_hand(evaluation_set, tmp_path, recipe, k):
    made = autoencoder(recipe, n=48, k=k)
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    z_tn = made.encode(normalised_rows(made, evaluation_set)[0]).dense(48).double().numpy()
    rows = [by_hand(z_n) for z_n in z_tn if z_n.any()]
    for name in concentration.FIGURES:
        found = value_of(result, name)
        assert found["value"] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-9)
        assert found["ci_lo"] < found["value"] < found["ci_hi"]
        assert result.unit_stats.query("metric == @name")["den"].sum() == len(rows)


def test_one_latent_and_equal_latents_are_the_limits():
    one = Codes(torch.tensor([[3, 0]]), torch.tensor([[2.0, 0.0]]))
    figures = concentration.row_figures(one, 9)
    assert [figures[name].item() for name in concentration.FIGURES] == pytest.approx([1, 0, 1, 1])
    equal = Codes(torch.arange(9)[None], torch.full((1, 9), 0.5))
    figures = concentration.row_figures(equal, 9)
    assert [figures[name].item() for name in concentration.FIGURES] == pytest.approx([9, np.log(9), 1 / 9, 0])


def test_scale_does_not_matter():
    values = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    indices = torch.arange(4).expand(5, 4)
    small, large = (concentration.row_figures(Codes(indices, scale * values), 16) for scale in (1.0, 64.0))
    for name in concentration.FIGURES:
        assert small[name] == pytest.approx(large[name])


def test_without_an_active_latent_there_is_a_reason(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(constant_autoencoder(torch.zeros(D)), evaluation_set, tmp_path / "codes"))
    assert set(result.metrics["status"]) == {"na"} and result.metrics["reason"].notna().all()


def test_results_do_not_depend_on_the_blocks(evaluation_set, tmp_path, monkeypatch):
    inputs = make_inputs(autoencoder("relu", n=48, k=None), evaluation_set, tmp_path / "codes")
    whole = METRIC.run(inputs)
    monkeypatch.setattr(concentration, "_BLOCK_ROWS", 7)
    assert METRIC.run(inputs).metrics["value"].to_numpy() == pytest.approx(whole.metrics["value"].to_numpy(), rel=1e-12)
