"""`sae-pipeline inspect` on a study whose autoencoders were put in place by hand: it needs nothing else of a run."""

import pytest
import torch

from resources import StudyGraph
from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig, inspect_prompt, render_inspection
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import MetricResult, write_metric
from sae_pipeline.evaluation.tables import frame
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import Draft
from sae_pipeline.subjects import load_subject, load_tokenizer
from tests.pipeline.front_door import assert_refused, enter

SITE, OTHER, KEY, D, N = "tiny.1.resid_post", "tiny.0.resid_mid", "topk-n16-k4", 32, 16
PROMPT = "def add(x):"


def autoencoder(seed=0):
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    parameters = Parameters(torch.randn(N, D, generator=g), torch.zeros(N), W_dec, torch.zeros(D))
    return Autoencoder(AutoencoderConfig("topk", N, D, 4), parameters, Normaliser("paper", D))


def publish(work, name, fill):
    node = work.lineage[name]
    lineage = dict(node.record)
    with Draft.open(
        work.directory(node), stage=node.stage, key=node.key, identity=node.identity, lineage=lineage
    ) as draft:
        fill(draft)
        draft.publish({})


def write_autoencoder(draft, sae):
    for file, parts in sae.to_files().items():
        draft.write_bytes(file, *parts)


def densities():
    columns = {"autoencoder": KEY, "sae_id": "0" * 64, "count": 1, "mean_act": 1.0, "max_act": 1.0}
    rows = [columns | {"latent": latent, "density": latent / 1000} for latent in range(N)]
    return MetricResult("density", 1, frame("metrics", []), latent_stats=frame("latent_stats", rows))


@pytest.fixture
def made(world):
    """The world with two sites, one autoencoder at each, and the densities of one of them."""
    world.study.write_text(world.study.read_text().replace(f"  {SITE}: {{}}\n", f"  {SITE}: {{}}\n  {OTHER}: {{}}\n"))
    work = StudyGraph.read(world.study, (), world.outputs).workspace
    for seed, site in enumerate((SITE, OTHER)):
        publish(work, f"autoencoder/{site}/{KEY}", lambda draft, seed=seed: write_autoencoder(draft, autoencoder(seed)))
    publish(work, f"eval_density/{SITE}/{KEY}", lambda draft: write_metric(draft, densities()))
    return world, work


def arguments(world, key, *more, prompt=PROMPT):
    return ["inspect", key, "--prompt", prompt, "--study", str(world.study), "--outputs", str(world.outputs), *more]


def test_it_prints_what_the_library_finds(made, capsys):
    world, work = made
    subject, tokenizer = (load(work.study.subject, root=work.root) for load in (load_subject, load_tokenizer))
    before = world.snapshot()
    for seed, site in enumerate((SITE, OTHER)):
        assert enter(arguments(world, KEY, "--site", site, "--top", "3")) == 0
        printed = capsys.readouterr().out
        found = inspect_prompt(autoencoder(seed), subject, tokenizer, site, PROMPT, bos=True, top=3)
        known = {latent: latent / 1000 for latent in range(N)} if site == SITE else None
        identity = work.lineage[f"autoencoder/{site}/{KEY}"].identity
        assert printed == f"{KEY} at {site}  ({identity[:12]})\n\n{render_inspection(found, known)}\n"
        assert ("density" in printed) == (site == SITE)
    assert world.snapshot() == before


def test_contexts_start_as_the_study_says(made, capsys):
    """Other tokens are another autoencoder, so it has to be made first; then the first token is not there."""
    world, work = made
    changed = StudyGraph.read(world.study, ["tokens.bos=none"], world.outputs).workspace
    asked = arguments(world, KEY, "--site", SITE, "--set", "tokens.bos=none")
    assert enter(asked) == 1 and "not made yet" in capsys.readouterr().err
    publish(changed, f"autoencoder/{SITE}/{KEY}", lambda draft: write_autoencoder(draft, autoencoder()))
    assert enter(asked) == 0
    subject, tokenizer = (load(work.study.subject, root=work.root) for load in (load_subject, load_tokenizer))
    texts = [
        render_inspection(inspect_prompt(autoencoder(), subject, tokenizer, SITE, PROMPT, bos=bos))
        for bos in (True, False)
    ]
    printed = capsys.readouterr().out
    assert texts[1] in printed and texts[0] not in printed


@pytest.mark.parametrize(
    ("key", "more", "names", "says"),
    [
        ("topk-n16-k5", [], "topk-n16-k5", f"near: {KEY}"),
        (SITE, [], f"{SITE} is a site", "name one of its autoencoders, e.g. topk-n"),
        (KEY, [], f"{SITE}, {OTHER}", "choose one with --site"),
        (KEY, ["--site", "tiny.2.resid_post"], "tiny.2.resid_post", f"there is one at {SITE}, {OTHER}"),
        ("topk-n32-k4", ["--site", SITE], f"autoencoder/{SITE}/topk-n32-k4 is not made yet", "sae-pipeline run "),
        (KEY, ["--site", SITE, "--top", "0"], "0 latents", "ask for at least one"),
    ],
)
def test_what_cannot_be_inspected_is_refused(made, capsys, key, more, names, says):
    world, _ = made
    assert_refused(world, capsys, arguments(world, key, *more), names=names, says=says)


@pytest.mark.parametrize(
    ("prompt", "names", "says"),
    [("", "the prompt is empty", "give some text"), ("x" * 400, "48 positions", "shorten it")],
)
def test_prompts_that_do_not_fit_are_refused(made, capsys, prompt, names, says):
    world, _ = made
    assert_refused(world, capsys, arguments(world, KEY, "--site", SITE, prompt=prompt), names=names, says=says)
