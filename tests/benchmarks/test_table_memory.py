import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")
def test_it_measures_each_format(root):
    command = [sys.executable, "benchmarks/table_memory.py", "--rows", "3000", "--formats"]
    done = subprocess.run([*command, "arrow"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    title, _, line = done.stdout.splitlines()
    assert title == "3,000 rows"
    assert line.startswith("arrow")
    assert len(line.split()) >= 7
