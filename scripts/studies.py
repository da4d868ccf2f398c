"""What the studies share: pretraining runs in processes of their own, kept and continued."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def pretrained(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """results.json of a run of pretrain_lidar.py with these overrides: the finished run's, or made or continued now.

    A run that ends with an error gives {"failed": the end of its message}.
    """
    results = folder / "results.json"
    if not results.is_file():
        script = str(Path(__file__).with_name("pretrain_lidar.py"))
        fixed = [f"run.dir={folder}", "resume=true", "trainer.progress=false"]
        done = subprocess.run(
            [sys.executable, script, *fixed, *overrides], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"failed": done.stderr[-2000:]}
    return json.loads(results.read_text())


def called(script: str, *words: str) -> dict[str, float]:
    """Another script of this folder, in a process of its own; its CPU seconds and peak memory.

    Raises:
        SystemExit: with the end of what it printed, if it fails.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{printed[-2000:]}")
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": peak}
