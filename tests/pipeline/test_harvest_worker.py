"""Workers of a study, as people start them: what they commit is what a run publishes, bit for bit."""

import dagster as dg
import pytest

from assets.launching import backfill, prepare_instance
from sae_pipeline.harvest_worker import main
from sae_pipeline.subjects import Subject
from tests.pipeline.conftest import Bench, load_graph


def make(bench, asset):
    instance = prepare_instance(bench.graph, bench.instance)
    assert backfill(bench.definitions(), bench.graph, instance, bench.graph.workspace.stale({asset})) == []


def bits(array):
    paths = [path(i) for i in range(array.n_shards) for path in (array.shard_path, array.commit_path)]
    return [path.read_bytes() for path in paths]


def test_workers_make_shards_and_a_run_publishes_them(tmp_path, capsys, monkeypatch):
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        bench = Bench(load_graph(tmp_path / "outputs"), instance)
        work = bench.graph.workspace
        (node,) = work.lineage.of_asset("activations")
        call = ["smoke", "--outputs", str(tmp_path / "outputs")]
        assert main(call) == 1
        assert "run the stage that makes it" in capsys.readouterr().err
        make(bench, "tokens")
        make(bench, "activations")
        expected = bits(work.artefact(node.name).array("acts"))
        n_shards = len(expected) // 2
        assert main(call) == 0
        assert "nothing to do" in capsys.readouterr().out

        bench.forget("activations")
        assert main([*call, "--shards", f"0:{n_shards + 1}"]) == 1
        assert f"there are {n_shards} to be made" in capsys.readouterr().err
        assert main([*call, "--shards", "1:3"]) == 0
        assert "2 shards made here" in capsys.readouterr().out
        assert main(call) == 0
        assert f"{n_shards - 2} shards made here" in capsys.readouterr().out
        assert work.find(node.name) is None, "a worker must not publish"

        monkeypatch.setattr(Subject, "run", lambda *_: pytest.fail("the run made a shard that was committed"))
        make(bench, "activations")
        assert bits(work.artefact(node.name).array("acts")) == expected


@pytest.mark.parametrize("shards", ["3", "5:5", "a:b", "4:2"])
def test_what_is_no_range_is_refused(shards, capsys):
    with pytest.raises(SystemExit):
        main(["smoke", "--shards", shards])
    assert "is not a range of shards such as 0:8" in capsys.readouterr().err
