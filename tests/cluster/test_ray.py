"""Studies on a real Ray cluster: three nodes on this machine, which are killed meanwhile."""

import os
import signal
import subprocess

import pytest

pytestmark = pytest.mark.cluster
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 2 * 2**30}


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    yield made
    made.shutdown()


def _processes(text):
    """Return the numbers of the processes whose command line has a text."""
    listed = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split() if int(number) != os.getpid()]


def test_every_cell_has_one_result_though_a_node_and_a_worker_die(cluster, nine_cells):
    second = cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    ray = ("--launcher", "ray", "--option", f"address={cluster.address}", "--threads", "1")
    command = nine_cells.start(*ray)
    nine_cells.wait_for(lambda: len(nine_cells.attempts()) >= 3)
    cluster.remove_node(second, allow_graceful=False)
    nine_cells.wait_for(lambda: len(nine_cells.finished) >= 3)
    child = next(iter(_processes(f"study cell {nine_cells.path.relative_to(nine_cells.folder)}")))
    worker = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(child)]))
    os.kill(worker, signal.SIGKILL)
    nine_cells.wait_for(lambda: not os.path.exists(f"/proc/{child}"), seconds=20)
    assert command.wait(240) == 0
    assert sorted(nine_cells.finished) == sorted(nine_cells.cells)
    assert sum(each["count"] for each in nine_cells.attempts().values()) > 9

    by_ray = nine_cells.qualities()
    (nine_cells.folder / "studies").rename(nine_cells.folder / "by-ray")
    one = ("--axis", 'method=["kd"]', "--threads", "1")
    assert nine_cells.run(*one) == 0
    local = nine_cells.qualities()
    assert local == {name: by_ray[name] for name in local}


def test_missing_cluster_is_named(nine_cells, capfd):
    pytest.importorskip("ray")
    assert nine_cells.run("--launcher", "ray", "--option", "address=127.0.0.1:1") == 2
    assert "gkd starts none" in capfd.readouterr().err
