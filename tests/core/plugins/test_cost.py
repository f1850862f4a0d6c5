"""What a plugin costs a command that imports torch anyway."""

import json
import subprocess
import sys

import pytest

SHARE = 0.01
"""Of the CPU time to import torch, which is two seconds where that of a plugin may be 20 ms."""

CODE = """
import json, sys, time
from importlib.metadata import distributions
start = time.process_time()
import torch
needed = time.process_time() - start
import gkd_core.config.resolve, gkd_core.contract.method
from gkd_core.plugins import Registry
entries = [entry for one in distributions(path=[sys.argv[1]]) for entry in one.entry_points]
start = time.process_time()
methods = Registry(entries).methods
print(json.dumps([needed, (time.process_time() - start) / len(methods)]))
"""


@pytest.mark.slow
def test_a_plugin_adds_little_to_the_import_of_torch(install, method, tmp_path):
    for number in range(8):
        install(f"gkd-method-m{number}", **{f"m{number}": method(f"m{number}")})
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    torch, plugin = json.loads(done.stdout)
    assert plugin < SHARE * torch
