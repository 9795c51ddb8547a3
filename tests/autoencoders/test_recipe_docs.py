"""docs/autoencoders.md says what there is, and its example of a new recipe is right."""

import re
from pathlib import Path

import numpy as np
import torch

from sae_pipeline.autoencoders.recipes import RECIPES
from sae_pipeline.autoencoders.recipes.recipe import Recipe
from sae_pipeline.autoencoders.recipes.relu import penalised
from sae_pipeline.kernels import Objective, TrainState
from sae_pipeline.kernels.reference import losses_and_gradients
from tests.autoencoders.recipe_doubles import SCALE, WEIGHT, batch, parameters, settings
from tests.autoencoders.test_recipe_gradients import B, arrays, differences, plain, pre_of, relu

PAGE = (Path(__file__).parents[2] / "docs" / "autoencoders.md").read_text(encoding="utf-8")


def test_the_table_lists_every_recipe_and_its_needs():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| ([a-z0-9, ]+) \|[^|]*\|$", PAGE, re.MULTILINE)
    assert {name: tuple(needs.split(", ")) for name, needs in rows} == {name: r.needs for name, r in RECIPES.items()}


def test_the_encoders_are_those_that_are_saved():
    listed = {
        encoder: set(re.findall(r"`([a-z0-9-]+)`", recipes))
        for encoder, recipes in re.findall(r"^\| (topk|relu|threshold) \|[^|]*\| (.*) \|$", PAGE, re.MULTILINE)
    }
    assert listed == {e: {n for n, r in RECIPES.items() if r.encoder == e} for e in ("topk", "relu", "threshold")}


def test_the_example_of_a_new_recipe_trains_by_its_derivative():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    made = {}
    exec(code, {"Recipe": Recipe, "penalised": penalised, "RECIPES": made})
    recipe = made["relu-root"]
    given = settings("relu", **recipe.options)
    params, x = parameters("relu"), batch()
    objective = Objective(None, SCALE, 0, 0.0, 10**9, recipe.forward(given))
    _, (found, _) = losses_and_gradients(TrainState.start(params, average=False), x, objective, WEIGHT)

    def loss(p, rows):
        z = relu(pre_of(p, rows))
        return plain(p, rows, z) + WEIGHT * (np.sqrt(SCALE**0.5 * z + 1e-6) - 1e-3).sum() / B

    expected = differences(loss, arrays(params), x.numpy(), "W_enc", step=1e-7)
    torch.testing.assert_close(found.W_enc, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
