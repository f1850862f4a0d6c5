"""Studies and a cache of answers on a real Ray cluster: three nodes, which are killed meanwhile."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 2 * 2**30}


class RestartedCluster:
    """A Ray cluster of three nodes, whose head is started again after it has died."""

    def __init__(self):
        self.cluster = None
        self.nodes = []
        self.start()

    def start(self):
        from ray.cluster_utils import Cluster

        head = NODE | {"include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]

    @property
    def options(self):
        address = f"address={self.cluster.address}"
        return ("--launcher", "ray", "--option", address, "--threads", "1")

    def kill_a_node(self):
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def kill_the_head(self):
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    made = RestartedCluster()
    yield made
    made.cluster.shutdown()


def _processes(text):
    """Return the numbers of the processes whose command line has a text."""
    listed = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split() if int(number) != os.getpid()]


def _children(cells):
    """Return the processes of the cells of a study, as far as they run."""
    found = (Path(f"/proc/{number}") for number in _processes("study cell studies/nine"))
    return [int(each.name) for each in found if _folder_of(each) == cells.folder]


def _folder_of(process):
    try:
        return (process / "cwd").resolve()
    except OSError:  # it has just ended
        return None


def test_every_cell_has_one_result_though_a_node_and_a_worker_die(cluster, nine_cells, locally):
    command = nine_cells.start(*cluster.options)
    nine_cells.wait_for(lambda: len(nine_cells.attempts()) >= 3)
    cluster.kill_a_node()
    nine_cells.wait_for(lambda: len(nine_cells.finished) >= 3)
    nine_cells.wait_for(lambda: _children(nine_cells))
    child = _children(nine_cells)[0]
    worker = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(child)]))
    os.kill(worker, signal.SIGKILL)
    nine_cells.wait_for(lambda: child not in _children(nine_cells), seconds=20)
    assert command.wait(900) == 0
    nine_cells.assert_equal(locally)
    assert sum(each["count"] for each in nine_cells.attempts().values()) > 9


def test_command_given_again_goes_on_after_the_head_was_restarted(cluster, nine_cells, locally):
    command = nine_cells.start(*cluster.options)
    nine_cells.wait_for(lambda: len(nine_cells.finished) >= 2)
    before = nine_cells.finished
    cluster.kill_the_head()
    assert command.wait(120) != 0
    nine_cells.wait_for(lambda: not _children(nine_cells), seconds=60)
    cluster.cluster.shutdown()
    cluster.start()
    assert nine_cells.run(*cluster.options) == 0
    nine_cells.assert_equal(locally)
    attempts = nine_cells.attempts()
    assert {attempts[name]["count"] for name in before} == {1}  # a finished cell never runs again


def test_cache_has_the_bytes_of_one_process_though_a_node_dies(
    cluster, four_shards, written_here, wait_for
):
    command = four_shards.start(*cluster.options, "--cells", "3")
    wait_for(four_shards.is_being_written)
    cluster.kill_a_node()
    while (status := command.wait(600)) == 75:  # a shard's writer was seen as it was dying
        command = four_shards.start(*cluster.options, "--cells", "3")
    assert status == 0
    assert four_shards.is_finished
    assert four_shards.answers() == written_here


def test_missing_cluster_is_named(nine_cells, capfd):
    pytest.importorskip("ray")
    assert nine_cells.run("--launcher", "ray", "--option", "address=127.0.0.1:1") == 2
    assert "gkd does not start one" in capfd.readouterr().err
