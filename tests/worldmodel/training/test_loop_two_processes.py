"""`fit` on two processes gives the losses of one process with the same global batch, and stops as one."""

from pathlib import Path
from typing import Any

import pytest

from tests.worldmodel.training.toy import ToyTask, losses, rows, train
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.protocols import RepresentationCollapse
from worldmodel.training import TrainingDiverged
from worldmodel.training.checkpoints import CheckpointError, load_checkpoint
from worldmodel.training.run_folder import RunFolder


def _train(rank: int, folder: Path, changes: dict[str, Any]) -> tuple[int, bool, list[int]]:
    task = ToyTask()
    result = train(folder, task=task, **changes)
    return result.step, result.interrupted, [i for batch in task.seen for i in batch.indices]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"num_workers": 1}], ids=str)
def test_same_losses_as_one_process(
    two_processes: TwoProcesses, tmp_path: Path, changes: dict[str, Any]
) -> None:
    # With accumulation a micro-batch is a batch of its own for BatchNorm: one process then takes micro-batches too.
    task = ToyTask()
    train(tmp_path / "one", task=task, **changes)
    answers = two_processes.run(_train, tmp_path / "two", changes)
    assert [a[:2] for a in answers] == [(12, False)] * 2
    seen = [set(a[2]) for a in answers]
    assert seen[0] | seen[1] == {i for batch in task.seen for i in batch.indices}
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-4)


def test_resuming_on_another_number_of_processes(two_processes: TwoProcesses, tmp_path: Path) -> None:
    train(tmp_path / "one")
    train(tmp_path / "mixed", stop_after=5)
    two_processes.run(_train, tmp_path / "mixed", {"stop_after": 4})
    train(tmp_path / "mixed")
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_resuming_on_two_processes_is_bit_exact(two_processes: TwoProcesses, tmp_path: Path) -> None:
    two_processes.run(_train, tmp_path / "whole", {})
    for piece in (4, 3, 5):
        two_processes.run(_train, tmp_path / "pieces", {"stop_after": piece})
    assert rows(tmp_path / "pieces") == rows(tmp_path / "whole")


def _stopped(rank: int, folder: Path, task: dict[str, Any]) -> str:
    try:
        train(folder, task=ToyTask(**task))
    except (TrainingDiverged, RepresentationCollapse) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("task", "error"),
    [({"nan_at": 7}, "TrainingDiverged: "), ({"collapse_at": 6}, "RepresentationCollapse: the toy")],
)
def test_all_ranks_stop_with_the_same_error(
    two_processes: TwoProcesses, tmp_path: Path, task: dict[str, Any], error: str
) -> None:
    answers = two_processes.run(_stopped, tmp_path, task)
    assert all(answer.startswith(error) for answer in answers)
    assert answers[0] == answers[1]
    latest = RunFolder(tmp_path).latest_checkpoint()
    assert latest is not None
    assert load_checkpoint(latest).step == 5


def _interrupted_on_rank_1(rank: int, folder: Path) -> tuple[int, bool]:
    import os
    import signal

    class Interrupted(ToyTask):
        def after_step(self, step: int, total_steps: int) -> dict[str, float]:
            if step == 6 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().after_step(step, total_steps)

    result = train(folder, task=Interrupted())
    return result.step, result.interrupted


def test_a_signal_to_one_rank_stops_all(two_processes: TwoProcesses, tmp_path: Path) -> None:
    assert two_processes.run(_interrupted_on_rank_1, tmp_path) == [(7, True)] * 2


def _broken_on_rank_0(rank: int, folder: Path) -> str:
    (folder / "checkpoints").write_text("a file where the folder should be")
    try:
        train(folder)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_checkpoint_that_cannot_be_written_is_an_error_on_all_ranks(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    answers = two_processes.run(_broken_on_rank_0, tmp_path)
    assert all("cannot be written" in answer for answer in answers)
