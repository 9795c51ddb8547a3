from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_pipeline.evaluation import METRICS
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site, StudyError, autoencoder_key, expand, identity_of, load_study, resolve_site
from sae_pipeline.study.quantities import parse_bytes, parse_count, parse_ratio, parse_seconds

STUDIES = Path(__file__).parents[2] / "studies"
DEMO = STUDIES / "demo.yaml"
SITE_TEXT = "code.3of5.resid_post"
SITE = Site("code", 2, "resid_post")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path):
    study = load_study(path)
    site_text = next(iter(study.sites))
    assert study.study == path.stem
    assert expand(study, resolve_site(site_text, 12), site_text, 768)


def test_the_demo_is_fifteen_topk_and_three_relu():
    specs = expand(load_study(DEMO), SITE, SITE_TEXT, 128)
    assert sum(spec.recipe == "topk" for spec in specs.values()) == 15
    assert sum(spec.recipe == "relu" for spec in specs.values()) == 3
    assert specs["topk-n4096-k16"].lr == pytest.approx(2e-3 * (4096 / 1024) ** -0.5)
    assert specs["topk-n256-k4"].auxk_k == 64
    assert specs["relu-n1024-l0.2"].auxk_k is None


@pytest.mark.parametrize(
    ("text", "value"), [("2M", 2_000_000), ("100k", 100_000), ("64Ki", 65_536), ("1_000", 1000), (7, 7), ("1.5k", 1500)]
)
def test_counts(text, value):
    assert parse_count(text) == value


def test_other_quantities():
    assert parse_bytes("400GB") == 400 * 10**9
    assert parse_seconds("10min") == 600
    assert parse_ratio("1/32") == 1 / 32


@pytest.mark.parametrize("text", ["2 parsecs", "", "-3", "1.5", True, None, "M"])
def test_no_count(text):
    with pytest.raises(ValueError, match=r"count|whole"):
        parse_count(text)


def test_finetuned_autoencoders_take_their_size_from_parents_above_them():
    relu = "{recipe: relu, n: 1024, l1: [0.2, 0.5]}"
    tuned = "{recipe: finetune-scale, parents: [relu-n1024-l0.2, relu-n1024-l0.5], tokens: 200k}"
    overrides = [f"autoencoders.grids=[{relu}, {tuned}]"]
    specs = expand(load_study(DEMO, overrides), SITE, SITE_TEXT, 128)
    child = specs["finetune-scale-of-relu-n1024-l0.2"]
    assert (child.n, child.parent, child.k, child.l1, child.tokens) == (1024, "relu-n1024-l0.2", None, None, 200_000)
    assert "parent" not in child.determining()  # its identity comes with the lineage
    assert list(specs)[-1] == "finetune-scale-of-relu-n1024-l0.5"


def test_a_grid_can_switch_auxk_off_and_ask_for_resampling():
    overrides = ["autoencoders.grids.0.auxk=off", "autoencoders.grids.0.resample=[0.25, 0.5]"]
    for asked, auxk, resample in (([], True, None), (overrides, False, (0.25, 0.5))):
        study = load_study(DEMO, asked)
        spec = expand(study, SITE, next(iter(study.sites)), 128)["topk-n1024-k8"]
        assert ((spec.auxk_k is not None), spec.resample) == (auxk, resample)
        assert ("resample" in spec.determining()) == (resample is not None)


def test_one_word_asks_for_a_suite_of_metrics():
    full = load_study(DEMO, ["evaluation.metrics=full"]).evaluation.metrics
    assert set(full) == set(METRICS) and not any(full.values())
    core = load_study(DEMO, ["evaluation.metrics=core"])
    assert core == load_study(DEMO, ["evaluation.metrics={reconstruction: {}, density: {}, downstream: {}}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokens.contxt=4", "unknown key 'tokens.contxt'; did you mean 'context'"),
        ("corpora.0.sorce=x", "did you mean 'source'"),
        ("autoencoders.defaults.lr.bse=1", "did you mean 'base'"),
        ("tokens.train=lots", "not a count"),
        ("tokens.train", "write key=value"),
        ("corpora.7.name=x", "not an index below 1"),
        ("sites.gpt2.2.resid_post={}", "not the subject's"),
        ("evaluation.metrics={density: {}}", "reconstruction must be among them"),
        ("evaluation.metrics=fulll", "no suite; write core or full"),
        ("autoencoders.grids.0.target_l0=[4]", "give it without k and l1"),
        ("autoencoders.grids.0.sites=[mlp_out]", "none of the study's"),
        ("study=a/b", "letters, digits"),
        ("seed=-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_says_what_to_change(override, message):
    with pytest.raises(StudyError, match=message):
        load_study(DEMO, [override])


def test_a_missing_study_names_the_known_ones():
    with pytest.raises(StudyError, match=r"known here: .*demo"):
        load_study(STUDIES / "demmo.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("autoencoders.grids.0.k=[300]", "k = 300 exceeds n = 256"),
        ("autoencoders.defaults.dead_after_tokens=3M", "no shorter than the run"),
        ("autoencoders.defaults.batch=4M", "do not fill one batch"),
        ("autoencoders.grids.1={recipe: topk, n: 256, k: 4}", "two grid entries make the key"),
    ],
)
def test_an_impossible_autoencoder_says_what_to_change(override, message):
    with pytest.raises(ValueError, match=message):
        expand(load_study(DEMO, [override]), SITE, SITE_TEXT, 128)


def test_an_override_reaches_through_a_site_key_and_a_list():
    study = load_study(
        DEMO, [f"sites.{SITE_TEXT}.normaliser=rms", "corpora.0.weight=0.5", "autoencoders.defaults.seeds=[0, 3]"]
    )
    assert study.sites[SITE_TEXT].normaliser == "rms"
    assert study.corpora[0].weight == 0.5
    assert {"topk-n256-k4", "topk-n256-k4-s3"} <= set(expand(study, SITE, SITE_TEXT, 128))


def test_a_tag_tells_two_cells_apart():
    tagged = "autoencoders.grids.1={recipe: topk, n: 256, k: 4, tag: slow, lr: {base: 1.0e-4}}"
    specs = expand(load_study(DEMO, [tagged]), SITE, SITE_TEXT, 128)
    assert specs["topk-n256-k4-slow"].lr < specs["topk-n256-k4"].lr


@pytest.mark.parametrize(
    ("text", "layers", "layer"), [("a.3of4.resid_post", 4, 2), ("a.5of6.mlp_out", 12, 9), ("a.b.0.attn_z", 2, 0)]
)
def test_sites_resolve(text, layers, layer):
    site = resolve_site(text, layers)
    assert site.layer == layer
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["a.9.resid_post", "a.resid_post", "a.1.resid", "a.x.resid_post", "a.5of4.resid_post"])
def test_impossible_sites(text):
    with pytest.raises(ValueError, match="site"):
        resolve_site(text, 4)


@given(st.integers(1, 10**6), st.integers(1, 512), st.integers(0, 9))
def test_keys_are_safe_and_tell_members_apart(n, k, seed):
    key = autoencoder_key("topk", n, k=k, l1=None, target_l0=None, tag=None, seed=seed)
    assert key == f"topk-n{n}-k{k}" + (f"-s{seed}" if seed else "")
    assert autoencoder_key("relu", n, k=None, l1=0.1 * k, target_l0=None, tag=None, seed=0) != autoencoder_key(
        "relu", n, k=None, l1=0.1 * (k + 1), target_l0=None, tag=None, seed=0
    )


def test_execution_only_fields_stay_out_of_the_identity():
    def identity(*overrides):
        study = load_study(DEMO, list(overrides))
        spec = expand(study, SITE, SITE_TEXT, 128)["topk-n256-k4"]
        return identity_of({"study": study.determining(), "spec": spec.determining()})

    assert identity("subject.device=cuda", "activations.micro_batch=7", "training.checkpoint_every=1h") == identity()
    assert identity("tokens.context=32") != identity()
    assert identity("autoencoders.defaults.adam_eps=1e-8") != identity()


def test_a_study_may_say_more_than_this_version_does():
    """The schema reads what is still ahead, key by key; `planning.support` refuses to run it (tests/planning)."""
    study = load_study(Path(__file__).parent / "ahead.yaml")
    sizes = [len(expand(study, resolve_site(text, 26), text, 2304)) for text in study.sites]
    assert sizes == [10, 5, 5]
    assert study.retrain.promote.no_worse.on == "pinned"


def test_yaml_words_for_switches_stay_words():
    assert load_study(DEMO, ["report.title=no"]).report.title == "no"


@pytest.mark.parametrize(
    ("asked", "at"),
    [
        ("2", (512, 1024)),
        ("log2", (16, 32, 64, 128, 256, 512, 1024)),  # the eighth halving is less than a batch
        ("[1k, 100, 1.5k, 5M]", (96, 992, 1488)),
    ],
)
def test_milestones_are_whole_batches_within_the_budget(asked, at):
    overrides = [
        "autoencoders.defaults.batch=16",
        "autoencoders.defaults.tokens=2048",
        "autoencoders.defaults.dead_after_tokens=512",
        "autoencoders.defaults.schedule={warmup: 0}",
        f"training.milestones={asked}",
    ]
    specs = expand(load_study(DEMO, overrides), SITE, SITE_TEXT, 128)
    assert {spec.milestones for spec in specs.values()} == {at}
    assert next(iter(specs.values())).determining()["milestones"] == list(at)


def test_what_is_not_asked_for_is_in_no_identity():
    plain = expand(load_study(DEMO), SITE, SITE_TEXT, 128)
    ruled = expand(load_study(DEMO, ["training.stop_if={dead: 0.5, after: 0.2}"]), SITE, SITE_TEXT, 128)
    stopped = expand(load_study(DEMO, ["autoencoders.defaults.stop={converged: 1e-3}"]), SITE, SITE_TEXT, 128)
    for key, spec in plain.items():
        assert spec.determining() == ruled[key].determining()
        assert not {"stop", "milestones"} & set(spec.determining())
        assert stopped[key].determining()["stop"] == {"converged": 0.001, "window": 0.25}


EXTENDABLE = (
    "autoencoders.defaults.keep_before_decay=true",
    "autoencoders.grids=[{recipe: topk, n: 256, k: 4}]",
    "autoencoders.defaults.dead_after_tokens=100k",
)


def test_a_state_can_be_kept_for_longer_budgets():
    (spec,) = expand(load_study(DEMO, EXTENDABLE), SITE, SITE_TEXT, 128).values()
    assert spec.determining()["keep_before_decay"] is True
    (off,) = expand(
        load_study(DEMO, [*EXTENDABLE, "autoencoders.defaults.keep_before_decay=false"]), SITE, SITE_TEXT, 128
    ).values()
    assert "keep_before_decay" not in off.determining()


@pytest.mark.parametrize(
    "override",
    [
        "autoencoders.grids=[{recipe: relu, n: 256, l1: 0.1}]",
        "autoencoders.defaults.resample=[0.5]",
        "autoencoders.defaults.stop={converged: 1e-3}",
        "autoencoders.defaults.dead_after_tokens=null",
    ],
)
def test_no_state_is_kept_where_the_way_to_it_depends_on_the_budget(override):
    with pytest.raises(PipelineError, match="keep_before_decay promises"):
        expand(load_study(DEMO, [*EXTENDABLE, override]), SITE, SITE_TEXT, 128)


@pytest.mark.parametrize("asked", ["lots", "0", "[]", "true", "41"])
def test_milestones_that_say_nothing_are_refused(asked):
    with pytest.raises(StudyError, match="write log2, a number of halvings from 1 to 40, or a list of tokens"):
        load_study(DEMO, [f"training.milestones={asked}"])
