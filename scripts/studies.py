"""What the studies share: pretraining runs in processes of their own, kept and continued."""

import json
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
