"""The benchmark of the ground-truth database on few frames: what it stores and prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_gt_database.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of shared memory")
def test_processes_share_the_file(tmp_path: Path) -> None:
    words = ["--frames", "12", "--workers", "1", "--processes", "2", "--scenes", "4", "--data", str(tmp_path)]
    command = [sys.executable, str(SCRIPT), *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "gt_database.json").read_text())
    assert set(stored["built"]["per_class"]) == {"Car", "Pedestrian", "Cyclist"}
    assert stored["commit"]
    share = sum(row["share_mib"] for row in stored["pasting"])
    assert 0 < share <= stored["built"]["file_mib"] + 0.01
    assert sum(row["resident_mib"] for row in stored["pasting"]) > 1.5 * share
    assert all(row["copied_mib"] == 0 for row in stored["pasting"])
    assert done.stdout == (tmp_path / "gt_database.md").read_text() + "\n"
