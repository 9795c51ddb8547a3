"""Studies that cannot be: refused at the front door, by name and with a remedy, before anything is made."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.pipeline.front_door import World, assert_refused, enter

GRID = "autoencoders.grids.0"
DEFAULTS = "autoencoders.defaults"
SITE = "sites.tiny.1.resid_post"

# name: (settings, what the message names, what it says to do)
BAD_SETTINGS: dict[str, tuple[list[str], str, str]] = {
    "unknown key": (["tokns.train=5"], "unknown key 'tokns'", "did you mean 'tokens'"),
    "unknown key inside": (["tokens.contxt=8"], "unknown key 'tokens.contxt'", "did you mean 'context'"),
    "unknown key in a grid": ([f"{GRID}.sitess=[mlp_out]"], "grids.0.sitess", "did you mean 'sites'"),
    "unknown gate": (["gates.ded=0.1"], "unknown key 'gates.ded'", "did you mean 'dead'"),
    "wrong type": (["tokens.train=[1, 2]"], "tokens.train: [1, 2]", "is not a count"),
    "list for a mapping": (["tokens=[64]"], "tokens:", "write `key: value` pairs"),
    "mapping for a list": (["autoencoders.grids={recipe: topk}"], "autoencoders.grids: is no list", "write [first"),
    "negative number": (["tokens.train=-5"], "tokens.train", "greater than 0"),
    "zero": (["activations.shard_tokens=0"], "activations.shard_tokens", "greater than 0"),
    "unknown unit": (["tokens.train=2Q"], "'2Q' is not a count", "write a number with one of k, K, M"),
    "part of a token": (["evaluation.tokens=1.5"], "evaluation.tokens: 1.5", "not a whole number"),
    "infinite count": (["tokens.train=.inf"], "tokens.train: inf", "write a finite number"),
    "count beyond all numbers": ([f"tokens.train={10**400}"], "tokens.train: inf", "write a finite number"),
    "seed beyond 63 bits": ([f"seed={2**63}"], "seed", "less than 9223372036854775808"),
    "not a number": ([f"{DEFAULTS}.lr.base=.nan"], "lr.base", "finite number"),
    "division by zero": (["corpora.0.weight=1/0"], "corpora.0.weight: '1/0'", "divides by 0"),
    "momentum of one": ([f"{DEFAULTS}.adam_betas=[1.0, 0.999]"], "adam_betas.0", "less than 1"),
    "unknown recipe": ([f"{GRID}.recipe=topkk"], "recipe 'topkk'", "known: batch-topk, finetune-decoder"),
    "recipe without its sparsity": (
        ["autoencoders.grids=[{recipe: topk, n: 16, l1: 0.1}]"],
        "recipe 'topk'",
        "needs a value for k",
    ),
    "two sparsities": ([f"{GRID}.l1=[0.1]"], "l1 means nothing to recipe 'topk'", "leave it out"),
    "target beside k": ([f"{GRID}.target_l0=[4]"], "grid 'topk'", "give it without k and l1"),
    "target for what has a k": (
        ["autoencoders.grids=[{recipe: topk, n: 16, target_l0: 4}]"],
        "recipe 'topk' has its k for a target",
        "give k",
    ),
    "no sparsity": (["autoencoders.grids=[{recipe: topk, n: 16}]"], "grid 'topk'", "give k, l1 or target_l0"),
    "setting without effect": ([f"{GRID}.prefixes=[4, 16]"], "prefixes means nothing", "leave it out"),
    "option of another recipe": (
        [f"{GRID}.recipe=multi-topk", f"{GRID}.options={{bandwidth: 1}}"],
        "has no option 'bandwidth'",
        "it has: factor, weight",
    ),
    "finetuning of nothing": (
        ["autoencoders.grids=[{recipe: finetune-scale, n: 16, l1: 0.1}]"],
        "'finetune-scale' finetunes",
        "name its parents",
    ),
    "parents of a fresh start": (
        ["autoencoders.grids=[{recipe: relu, n: 16, l1: 0.1}, {recipe: relu, parents: relu-n16-l0.1}]"],
        "'relu' starts afresh",
        "leave out parents",
    ),
    "parent that is none": (
        ["autoencoders.grids=[{recipe: relu, n: 16, l1: 0.1}, {recipe: finetune-scale, parents: relu-n16-l0.2}]"],
        "its parent 'relu-n16-l0.2' is no autoencoder of a grid above it",
        "near: relu-n16-l0.1",
    ),
    "size of what has parents": (
        ["autoencoders.grids=[{recipe: finetune-scale, parents: relu-n16-l0.2, n: 4}]"],
        "n follows from its parents",
        "leave it out",
    ),
    "neither size nor parents": (["autoencoders.grids=[{recipe: relu, l1: 0.1}]"], "give n, or the parents", "relu"),
    "finetuning of a TopK": (
        ["autoencoders.grids=[{recipe: topk, n: 16, k: 4}, {recipe: finetune-scale, parents: topk-n16-k4}]"],
        "finetune-scale-of-topk-n16-k4",
        "its parent has a TopK",
    ),
    "prefixes that do not nest": (
        [f"{GRID}.recipe=matryoshka", f"{GRID}.prefixes=[8, 4]"],
        "prefixes [8, 4]",
        "must rise and end with n = 16",
    ),
    "k above n": ([f"{GRID}.k=[17]"], "topk-n16-k17: k = 17 exceeds n = 16", "lower k or raise n"),
    "no latents": ([f"{GRID}.n=0"], "grids.0.n.0", "greater than 0"),
    "no sizes": ([f"{GRID}.n=[]"], "grids.0.n", "at least 1 item"),
    "no grids": (["autoencoders.grids=[]"], "autoencoders.grids", "at least 1 item"),
    "keys that collide": (
        ["autoencoders.grids=[{recipe: topk, n: 16, k: 4}, {recipe: topk, n: 16, k: 4, batch: 32}]"],
        "two grid entries make the key 'topk-n16-k4'",
        "give one a `tag`",
    ),
    "dead window beyond the run": ([f"{DEFAULTS}.dead_after_tokens=2k"], "dead_after_tokens = 2,000", "shorten it"),
    "less than a batch": ([f"{DEFAULTS}.batch=4096"], "do not fill one batch of 4,096", "lower batch or raise tokens"),
    "warm-up beyond the run": ([f"{DEFAULTS}.schedule.warmup=31"], "schedule.warmup = 31", "shorten it"),
    "layer beyond the model": (
        ["sites={tiny.3.resid_post: {}}"],
        "site tiny.3.resid_post",
        "the subject has layers 0 to 2",
    ),
    "fraction beyond the model": (["sites={tiny.5of4.resid_post: {}}"], "5of4", "between 0 and 1"),
    "unknown place": (["sites={tiny.1.resid_pst: {}}"], "'resid_pst' is not one of", "resid_post"),
    "alias of another subject": (["sites={gpt2.1.resid_post: {}}"], "alias 'gpt2'", "is not the subject's, 'tiny'"),
    "one site twice": (
        ["sites={tiny.2.resid_post: {}, tiny.3of3.resid_post: {}}"],
        "name one place twice",
        "take one out",
    ),
    "site without autoencoders": (
        ["sites={tiny.1.resid_post: {}, tiny.1.mlp_out: {}}", f"{GRID}.sites=[mlp_out]"],
        "no grid trains an autoencoder at tiny.1.resid_post",
        "name it in a grid's `sites`",
    ),
    "grid at no site": ([f"{GRID}.sites=[mlp_out]"], "site 'mlp_out' is none of the study's", "resid_post"),
    "unknown normaliser": ([f"{SITE}.normaliser=zscore"], "resid_post.normaliser", "'paper', 'rms', 'mean_norm'"),
    "context beyond the model": (["tokens.context=49"], "longer than the 48 positions", "shorten it"),
    "context of one": (["tokens.context=1"], "tokens.context", "greater than or equal to 2"),
    "budget below a context": (["tokens.held_out=12"], "tokens.held_out = 12 is below one context", "raise it"),
    "one resident shard": (["dataset.resident_shards=1"], "dataset.resident_shards", "greater than or equal to 2"),
    "shards too large": (
        ["tokens.train=100G", "activations.shard_tokens=8M"],
        "takes 977 MiB of at most 256",
        "set activations.shard_tokens to 2097152",
    ),
    "unknown dtype": (["subject.dtype=float8"], "subject.dtype", "'float32', 'bfloat16' or 'float16'"),
    "unknown metric": (
        ["evaluation.metrics={reconstruction: {}, downstream: {}, nmsee: {}}"],
        "metric 'nmsee'",
        "known: ablation, antipodal, concentration",
    ),
    "unknown parameter of a metric": (
        ["evaluation.metrics={reconstruction: {}, downstream: {ablation: [zero]}}"],
        "parameter 'ablation' is unknown",
        "takes ablations",
    ),
    "unknown value of a parameter": (
        ["evaluation.metrics={reconstruction: {}, downstream: {ablations: [resample]}}"],
        "ablations 'resample'",
        "is not one of zero, mean",
    ),
    "variants that laws cannot read": (
        ["evaluation.metrics={reconstruction: {variants: [without_position_0]}, downstream: {}}"],
        "evaluation.metrics.reconstruction",
        "variants must hold 'all'",
    ),
    "evaluation beyond what is held out": (
        ["evaluation.tokens=401"],
        "evaluation.tokens = 401 exceeds tokens.held_out = 400",
        "lower the first or raise the second",
    ),
    "unknown target": (["scaling.targets=[kl]"], "scaling.targets.0", "'nmse' or 'dce'"),
    "target that is not measured": (
        ["evaluation.metrics={reconstruction: {}}"],
        "dce is not measured",
        "add the metric 'downstream'",
    ),
    "hold-out that cannot be made": (
        ["scaling.hold_out=largest_n"],
        "largest_n cannot be checked at tiny.1.resid_post",
        "set scaling.hold_out: none",
    ),
    "corpora without weight": (["corpora.0.weight=0"], "every weight is 0", "raise one"),
    "two corpora of one name": (
        ["corpora=[{name: a, source: stdlib}, {name: a, source: stdlib}]"],
        "two share a name",
        "give each its own",
    ),
    "unknown split": (["corpora.0.split=random"], "corpora.0.split", "'near_duplicate_cluster' or 'embedded_card'"),
    "study name with a slash": (["study=a/b"], "'a/b'", "letters, digits"),
    "study name that climbs": (["study=.."], "'..'", "not begin with a dot"),
    "study name that is taken": (["study=artefacts"], "'artefacts' is the folder", "choose another name"),
    "study name that is a number": (["study=2026"], "2026 is not text", "write it in quotes"),
    "study name too long": ([f"study={'a' * 101}"], "101 characters", "shorten it to 100"),
    "setting of a part of a value": (["study.x=1"], "'study' holds 'tiny'", "nothing called 'x'"),
    "setting of a missing entry": (["corpora.3.name=x"], "'3'", "not an index below 1"),
    "setting that is no YAML": (["tokens.train=[1"], "--set 'tokens.train=[1'", "the value is not YAML"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_study_that_cannot_be(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    settings, names, says = BAD_SETTINGS[name]
    assert_refused(world, capsys, world.run(*settings), names=names, says=says)


# name: (bytes in the study file, what the message names, what it says to do)
BAD_FILES: dict[str, tuple[bytes, str, str]] = {
    "no YAML": (b"study: tiny\nsites: [tiny.1\n", "study.yaml cannot be read", "line 3"),
    "a key twice": (b"study: tiny\nseed: 1\nseed: 2\n", "the key 'seed' stands twice", "line 3"),
    "a key twice inside": (b"study: tiny\ntokens:\n  train: 1k\n  train: 2k\n", "'train' stands twice", "line 4"),
    "a tag of Python": (b"study: !!python/name:os.system\n", "python/name:os.system", "mend it there"),
    "binary": (b"\x80\x04\x95", "study.yaml cannot be read", "mend it there"),
    "a list at the top": (b"- study: tiny\n", "holds no mapping", "see studies/demo.yaml"),
    "nothing": (b"", "holds no mapping", "see studies/demo.yaml"),
    "the most important missing": (b"study: tiny\n", "subject: is missing", "see studies/demo.yaml"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_study(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    content, names, says = BAD_FILES[name]
    world.study.write_bytes(content)
    assert_refused(world, capsys, world.run(), names=names, says=says)


# name: (arguments; what the message names; what it says to do; exit status)
BAD_COMMANDS: dict[str, tuple[list[str], str, str, int]] = {
    "no command": ([], "required", "usage: sae-pipeline", 2),
    "unknown command": (["rnu", "STUDY"], "invalid choice: 'rnu'", "'run', 'plan', 'why'", 2),
    "unknown option": (["run", "STUDY", "--sett", "a=1", "--otputs", "x"], "--otputs", "usage: sae-pipeline", 2),
    "two studies": (["run", "STUDY", "STUDY"], "unrecognized arguments", "usage: sae-pipeline", 2),
    "setting without a value": (
        ["run", "STUDY", "--set", "tokens.train"],
        "--set 'tokens.train'",
        "write key=value",
        1,
    ),
    "misspelt study": (["run", "smok"], "no study at", "did you mean 'smoke'?", 1),
    "study file that is not there": (["run", "FOLDER/studdy.yaml"], "no study at", "did you mean 'study'?", 1),
    "study in no folder": (["run", "nowhere/study"], "no study at", "a file that ends in .yaml", 1),
    "study that is a folder": (["run", "FOLDER/folder.yaml"], "folder.yaml cannot be read", "Is a directory", 1),
    "plan of what cannot be": (["plan", "STUDY", "--set", f"{GRID}.k=[64]"], "k = 64", "lower k or raise n", 1),
    "plan of unmeasured laws": (
        ["plan", "STUDY", "--set", "evaluation.metrics={reconstruction: {}}"],
        "dce is not measured",
        "take dce out of scaling.targets",
        1,
    ),
    "why of an unknown key": (["why", "topk-n16-k5", "--study", "STUDY"], "'topk-n16-k5'", "near: topk-n16-k4", 1),
    "why of an unknown stage": (["why", "tokns", "--study", "STUDY"], "'tokns'", "near: tokens", 1),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_command_that_cannot_be(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.folder / "folder.yaml").mkdir()
    arguments, names, says, status = BAD_COMMANDS[name]
    argv = [part.replace("STUDY", str(world.study)).replace("FOLDER", str(world.folder)) for part in arguments]
    if argv:
        argv += ["--outputs", str(world.outputs)]
    assert_refused(world, capsys, argv, names=names, says=says, status=status)


def test_the_good_study_reaches_its_first_stage(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every refusal above might come from something that is wrong with all of them."""

    class Begun(BaseException):
        pass

    def begin(*args: object, **options: object) -> None:
        raise Begun

    monkeypatch.setattr(dg.JobDefinition, "execute_in_process", begin)
    with pytest.raises(Begun):
        enter(world.run())
    assert "── build_dataset: tokens, activations" in capsys.readouterr().err
