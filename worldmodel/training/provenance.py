"""Where a number comes from: command, commit, machine, date. Stored with every result."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def command_line() -> str:
    """The command this process was started with, from the project's folder, absolute paths made relative."""
    here = f"{Path.cwd()}{os.sep}"
    words = [Path(sys.executable).name, *(a.replace(here, "") for a in sys.argv)]
    return shlex.join(words)


def code_commit() -> str:
    """The commit of this code, with a mark if files differ from it; "unknown" outside a repository."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return (commit or "unknown") + (" with local changes" if dirty else "")


def provenance() -> dict[str, Any]:
    """Command, commit, machine, versions and date."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "commit": code_commit(),
        "machine": f"{_cpu()}, {os.cpu_count()} logical cores" + (f", {', '.join(gpus)}" if gpus else ""),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
