"""Runs in processes of their own, ended as users and clusters end them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.worldmodel.training.toy import rows, train
from worldmodel.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
STEPS = {"max_steps": 90, "eval_every": 7, "checkpoint_every": 5}
PATIENCE_S = 60.0


@contextmanager
def process(
    folder: Path,
    *,
    launcher: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A toy run in a process group of its own; whatever is left of it is killed at the end of the block."""
    arguments = {"folder": str(folder), "task": {"delay": 0.02}, "dataset": {}, "trainer": STEPS} | settings
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "WORLD_SIZE", "RANK"))
    }
    running = subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.worldmodel.training.toy_run", json.dumps(arguments)],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def wait_for_rows(folder: Path, count: int, running: subprocess.Popen[str]) -> None:
    path = folder / "metrics.jsonl"
    began = time.monotonic()
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() - began < PATIENCE_S, "the run does not get anywhere"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, **STEPS)
    return folder


def test_kill_at_any_moment_then_resume(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 twice, without and with loader processes, at moments that differ from run to run."""
    moment = random.Random()
    for workers, count in ((0, 10), (2, 40)):
        with process(tmp_path, trainer={**STEPS, "num_workers": workers}) as running:
            wait_for_rows(tmp_path, count, running)
            time.sleep(moment.uniform(0, 0.1))
            assert running.poll() is None
            running.kill()
            running.wait()
    assert 40 <= len(read_metrics(tmp_path / "metrics.jsonl")) < len(rows(undisturbed))
    train(tmp_path, **STEPS)
    assert rows(tmp_path) == rows(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves(undisturbed: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal, torchrun or Slurm send it: loader processes get it too."""
    with process(tmp_path, trainer={**STEPS, "num_workers": 2}) as running:
        wait_for_rows(tmp_path, 10, running)
        os.killpg(running.pid, number)
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # a launcher passing on what the terminal sent already
        output = running.communicate(timeout=PATIENCE_S)[0]
    assert running.returncode == 130, output
    assert output.count("stopping after this step") == 1
    assert "Traceback" not in output
    stopped_at = json.loads(output.splitlines()[-1])["step"]
    assert rows(tmp_path)[-1]["step"] == stopped_at
    assert (tmp_path / "checkpoints" / f"step_{stopped_at:08d}").is_dir()
    train(tmp_path, **STEPS)
    assert rows(tmp_path) == rows(undisturbed)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_interrupting_torchrun_saves(undisturbed: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    with process(tmp_path, launcher=launcher, trainer={**STEPS, "num_workers": 1}) as running:
        wait_for_rows(tmp_path, 10, running)
        os.killpg(running.pid, signal.SIGINT)
        output = running.communicate(timeout=PATIENCE_S)[0]
    last = rows(tmp_path)[-1]["step"]
    assert 5 < last < 90, output
    assert output.count('"interrupted": true') == 2, output
    assert (tmp_path / "checkpoints" / f"step_{last:08d}").is_dir()
    for mine, reference in zip(rows(tmp_path), rows(undisturbed), strict=False):
        assert mine == pytest.approx(reference, abs=1e-4)


def test_an_error_on_one_rank_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    """Without a launcher that would kill it: rank 1 finds a point it cannot read, rank 0 is in a reduction."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    with (
        process(tmp_path, environment=shared | {"RANK": "0", "LOCAL_RANK": "0"}) as healthy,
        process(
            tmp_path, environment=shared | {"RANK": "1", "LOCAL_RANK": "1"}, dataset={"fail_at_index": 3}
        ) as broken,
    ):
        assert "point 3 cannot be read" in broken.communicate(timeout=PATIENCE_S)[0]
        output = healthy.communicate(timeout=30)[0]
    assert broken.returncode == 1
    assert healthy.returncode != 0, output
