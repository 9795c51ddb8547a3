"""A real `dagster dev` on a study of its own, spoken to over GraphQL: what a person's browser would do."""

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from resources import StudyGraph

CHECKOUT = Path(__file__).parents[2]
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Daemon:
    """Webserver, code server and daemon of one study, in a process group that `stop` ends."""

    def __init__(self, folder: Path, study: Path, outputs: Path) -> None:
        home = folder / "dagster_home"
        home.mkdir(parents=True, exist_ok=True)
        template = (CHECKOUT / "dagster.yaml").read_text()
        (home / "dagster.yaml").write_text(template.replace("poll_interval_seconds: 10", "poll_interval_seconds: 2"))
        self.home, self.log_path = home, folder / "dagster_dev.log"
        self.environment = os.environ | {
            "DAGSTER_HOME": str(home),
            "SAE_STUDY": str(study),
            "SAE_OUTPUTS": str(outputs),
            "SAE_SET": "",
            "OMP_NUM_THREADS": "1",
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [Path(sys.executable).parent / "dagster", "dev", "-h", "127.0.0.1", "-p", str(self.port)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-w", CHECKOUT / "workspace.yaml"],
                cwd=CHECKOUT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the whole group; runs that go on are ended with it."""
        os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, query: str, **variables: object) -> dict:
        """The data that answers a GraphQL query; a refused one fails the test with its errors."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        assert "errors" not in found, found["errors"]
        return found["data"]

    def wait(self, what: str, condition, *, limit_s: float = 300.0):
        """The first true value of `condition()`, asked again and again; fails with the server's log after `limit_s`."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                if value := condition():
                    return value
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.3)
        raise AssertionError(f"{what}: not within {limit_s} s\n{self.log_path.read_text()[-4000:]}")

    def ready(self) -> "Daemon":
        """Wait until the code location is loaded."""
        query = "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }"
        self.wait("code location", lambda: self.ask(query)["repositoriesOrError"].get("nodes"))
        return self

    def partitions(self, asset: str) -> list[str]:
        query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
            ... on AssetNode { partitionKeysByDimension { name partitionKeys } } } }"""
        found = self.ask(query, key={"path": asset.split("/")})["assetNodeOrError"]["partitionKeysByDimension"]
        return next(dimension["partitionKeys"] for dimension in found if dimension["name"] == "ae")

    def groups(self) -> dict[str, str]:
        """Group of every asset, by the last part of its key."""
        found = self.ask("{ assetNodes { assetKey { path } groupName } }")["assetNodes"]
        return {node["assetKey"]["path"][-1]: node["groupName"] for node in found}

    def turn_on(self, kind: str, name: str) -> None:
        """Start a sensor or a schedule."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "sae_pipeline", f"{kind}Name": name}
        verb = "startSensor" if kind == "sensor" else "startSchedule"
        query = f"""mutation($s: {kind.capitalize()}Selector!) {{ {verb}({kind}Selector: $s) {{
            __typename ... on PythonError {{ message }} }} }}"""
        found = self.ask(query, s=selector)[verb]
        assert "Error" not in found["__typename"], found

    def turn_off_schedule(self, name: str) -> None:
        """Stop a schedule."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "sae_pipeline", "scheduleName": name}
        query = """query($s: ScheduleSelector!) { scheduleOrError(scheduleSelector: $s) {
            ... on Schedule { scheduleState { id } } } }"""
        state = self.ask(query, s=selector)["scheduleOrError"]["scheduleState"]["id"]
        query = "mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
        assert self.ask(query, id=state)["stopRunningSchedule"]["__typename"] == "ScheduleStateResult"

    def backfill(self, study: str, assets: list[str], partitions: list[str] | None) -> str:
        """Launch a backfill as the UI does, of all partitions if they are None; returns its id."""
        query = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
        selection = [{"path": [study, asset]} for asset in assets]
        which = {"allPartitions": True} if partitions is None else {"partitionNames": partitions}
        found = self.ask(query, p={"assetSelection": selection, **which})
        assert found["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", found
        return found["launchPartitionBackfill"]["backfillId"]

    def launch(self, study: str, asset: str, partition: str) -> str:
        """Launch a run over one partition of an asset as the UI does; returns its id."""
        query = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        tags = {"dagster/partition": partition}
        if "|" in partition:
            tags |= dict(zip(("dagster/partition/ae", "dagster/partition/site"), partition.split("|"), strict=True))
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "sae_pipeline"}
        selector |= {"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": [study, asset]}]}
        labels = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        parameters = {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": labels}
        found = self.ask(query, p=parameters)["launchPipelineExecution"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return found["run"]["runId"]

    def run_end(self, run_id: str) -> str:
        """Status of a run once it has ended."""
        query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

        def ended():
            status = self.ask(query, id=run_id)["runOrError"]["status"]
            return status if status in ENDED else None

        return self.wait(f"run {run_id}", ended)

    def backfill_end(self, backfill_id: str) -> str:
        """Status of a backfill once it has ended."""
        query = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
            ... on PartitionBackfill { status } } }"""

        def ended():
            status = self.ask(query, id=backfill_id)["partitionBackfillOrError"]["status"]
            return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        return self.wait(f"backfill {backfill_id}", ended)

    def runs(self, **tags: str) -> list[dict]:
        """Runs with these tags, newest first: id, job, status, assets, tags."""
        query = """query($f: RunsFilter) { runsOrError(filter: $f) { ... on Runs { results {
            runId jobName status tags { key value } assetSelection { path } } } } }"""
        wanted = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        return self.ask(query, f=wanted)["runsOrError"]["results"]

    def terminate(self, run_id: str) -> None:
        """The UI's Terminate."""
        query = """mutation($id: String!) { terminateRun(runId: $id) { __typename
            ... on TerminateRunFailure { message } } }"""
        found = self.ask(query, id=run_id)["terminateRun"]
        assert found["__typename"] == "TerminateRunSuccess", found


class Night:
    """A study file, its outputs and the daemon that serves it."""

    def __init__(self, folder, outputs):
        self.path, self.outputs = folder / "smoke.yaml", outputs
        self.raw = yaml.safe_load((CHECKOUT / "studies" / "smoke.yaml").read_text())
        self.shipped_grids = copy.deepcopy(self.raw["autoencoders"]["grids"])
        self.raw["retrain"] = {"when": {"schedule": "* * * * *"}}
        self.raw["training"] = {"checkpoint_every": 0.2}
        self.raw["subject"]["device"] = "cpu"  # as the tests train for comparison
        self.write()
        self.daemon = Daemon(folder, self.path, outputs)

    def write(self):
        """Save the study as an editor does: aside, then in one step."""
        aside = self.path.with_suffix(".aside")
        aside.write_text(yaml.safe_dump(self.raw))
        aside.rename(self.path)

    def add(self, **grid):
        self.raw["autoencoders"]["grids"].append(grid)
        self.write()

    def reset(self):
        """Back to the autoencoders of the shipped study; what was made of others stays on disk."""
        self.raw["autoencoders"]["grids"] = copy.deepcopy(self.shipped_grids)
        self.write()

    def wait_for_partitions(self):
        """Until the sensor has made exactly the study's autoencoders partitions; it must be on."""
        keys = {node.name.split("/")[2] for node in self.work.lineage.of_asset("autoencoder")}
        self.daemon.wait("partitions", lambda: set(self.daemon.partitions("smoke/autoencoder")) == keys)

    @property
    def work(self):
        return StudyGraph.read(self.path, (), self.outputs).workspace

    def cell(self, key):
        return f"{key}|{self.site}"

    def forget(self, *names):
        work = self.work
        for name in names:
            shutil.rmtree(work.artefact(name).path)

    @property
    def site(self):
        return self.work.lineage.of_asset("dataset")[0].name.partition("/")[2]
