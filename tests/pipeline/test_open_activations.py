"""`sae_pipeline.open_activations`: the rows of a site, and the token that each belongs to."""

import numpy as np
import pytest
import torch

import sae_pipeline
from sae_pipeline.activations import ActivationError
from sae_pipeline.store import Damaged, NotPublished, PipelineError
from sae_pipeline.study import Site
from sae_pipeline.subjects import load_tokenizer
from tests.pipeline.harvested import SITE


@pytest.fixture
def opened(harvested):
    return harvested, sae_pipeline.open_activations("tiny", SITE, harvested.world.outputs)


def test_rows_are_the_subjects_activations(opened):
    harvested, activations = opened
    contexts, site = activations.tokens.split("train"), Site.parse(SITE)
    assert len(activations) == activations.n_rows == contexts.n_rows > 1900
    n = 16
    ids_cl, mask_cl = (torch.from_numpy(found) for found in (contexts.ids(0, n), contexts.row_mask(0, n)))
    expected_rd = harvested.subject().run(ids_cl, [site])[site][mask_cl]
    found_rd = activations.rows(0, len(expected_rd))
    assert found_rd.dtype == np.float32 and found_rd.shape[1] == activations.d
    np.testing.assert_allclose(found_rd, expected_rd.numpy(), rtol=1e-5, atol=1e-6)


def test_every_row_is_traced_to_its_token(opened):
    harvested, activations = opened
    tokenizer = load_tokenizer(harvested.work.study.subject, root=harvested.work.root)
    texts = {path.name: path.read_text() for path in harvested.world.corpus.iterdir()}
    ids = {name: tokenizer.encode_batch([text])[0] for name, text in texts.items()}
    for row in (0, 1, 15, 700, len(activations) - 1):
        document, position, token_id = activations.origin(row)
        expected = tokenizer.bos_id if position == -1 else ids[document][position]
        assert token_id == expected, (row, document, position)
    assert len({activations.origin(row) for row in range(40)}) > 20


def test_what_is_not_there_is_refused_by_name(opened, tmp_path):
    harvested, activations = opened
    outputs = harvested.world.outputs
    with pytest.raises(ActivationError, match=rf"no activations of tiny.9.mlp_out .*there are {SITE}"):
        sae_pipeline.open_activations("tiny", "tiny.9.mlp_out", outputs)
    with pytest.raises(ActivationError, match="run it first: sae-pipeline run huge"):
        sae_pipeline.open_activations("huge", SITE, outputs)
    with pytest.raises(PipelineError, match="outside"):
        activations.rows(0, len(activations) + 1)
    shard = harvested.activations.array("acts").shard_path(1)
    shard.unlink()
    with pytest.raises(Damaged, match="c/1/0: missing"):
        activations.rows(0, len(activations))
    (harvested.tokens.path / "artefact.json").unlink()
    with pytest.raises(NotPublished, match="tokens"):
        sae_pipeline.open_activations("tiny", SITE, outputs)
