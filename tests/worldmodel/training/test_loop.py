"""The training loop in one process: exact resume, accumulation, precision, and runs that make no sense."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.worldmodel.training.toy import (
    Batch,
    Points,
    ToyTask,
    collate,
    config,
    losses,
    opened,
    rows,
    train,
)
from worldmodel.objectives import Loss
from worldmodel.protocols import RepresentationCollapse
from worldmodel.training import TrainingDiverged, fit, loop
from worldmodel.training.checkpoints import CheckpointError, list_checkpoints, load_checkpoint
from worldmodel.training.metrics import MetricsLog, read_metrics
from worldmodel.training.run_folder import RunFolder
from worldmodel.training.schedules import WarmupCosine
from worldmodel.training.signals import StopRequest, stop_on_signal


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = train(folder)
    assert (result.step, result.max_steps, result.interrupted) == (12, 12, False)
    return folder


def saved_model(folder: Path) -> dict[str, torch.Tensor]:
    latest = RunFolder(folder).latest_checkpoint()
    assert latest is not None
    return load_checkpoint(latest).model


def assert_same_run(folder: Path, reference: Path) -> None:
    """Same metrics row by row, same final model, bit for bit."""
    assert rows(folder) == rows(reference)
    expected = saved_model(reference)
    for name, value in saved_model(folder).items():
        assert torch.equal(value, expected[name]), name


def steps_saved(folder: Path) -> list[int]:
    return [load_checkpoint(p).step for p in list_checkpoints(folder / "checkpoints")]


def test_what_a_run_leaves_behind(undisturbed: Path) -> None:
    table = read_metrics(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in table if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in table if "heldout/rankme" in row] == [0, 4, 8, 12]
    names = {"loss", "loss/prediction", "gradient_norm", "momentum", "learning_rate"}
    assert names | {"time/step_s", "time/data_s", "time/frames_per_s"} | {"step"} == set(table[1])
    assert steps_saved(undisturbed) == [10, 12]


def test_it_learns(tmp_path: Path) -> None:
    train(tmp_path, max_steps=100, eval_every=100, checkpoint_every=100)
    curve = losses(tmp_path)
    assert sum(curve[-10:]) < 0.7 * sum(curve[:10])


def test_runs_with_the_same_seed_are_equal_and_others_differ(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path / "again")
    assert_same_run(tmp_path / "again", undisturbed)
    train(tmp_path / "other", seed=1)
    assert losses(tmp_path / "other") != losses(undisturbed)


def test_worker_processes_change_nothing(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, num_workers=2)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("pieces", [[1] * 12, [4, 8], [3, 2, 7], [5, 100]])
def test_resuming_is_bit_exact(undisturbed: Path, tmp_path: Path, pieces: list[int]) -> None:
    """Stops at a held-out evaluation (4, 8), at a checkpoint (5), at neither; every piece has a new task."""
    done = 0
    for piece in pieces:
        result = train(tmp_path, stop_after=piece)
        done = min(12, done + piece)
        assert (result.step, result.interrupted) == (done, done < 12)
    assert_same_run(tmp_path, undisturbed)


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_around_every_write_then_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before and after every row of metrics and every checkpoint, so also between the two."""
    short = {"max_steps": 5, "eval_every": 2, "checkpoint_every": 2}
    train(tmp_path / "undisturbed", **short)
    for kill_at in range(5 + 4 + 4):  # steps, held-out rows, checkpoints
        events = 0

        def dying(write: Callable[..., Any], deadly: int = kill_at) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> None:
                nonlocal events
                if events == deadly and not after:
                    raise Killed
                write(*arguments, **options)
                if events == deadly:
                    raise Killed
                events += 1

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "write", dying(MetricsLog.write))
            patch.setattr(loop, "save_checkpoint", dying(loop.save_checkpoint))
            with pytest.raises(Killed):
                train(tmp_path / str(kill_at), **short)
        train(tmp_path / str(kill_at), **short)
        assert_same_run(tmp_path / str(kill_at), tmp_path / "undisturbed")


def test_work_after_the_last_checkpoint_is_redone(undisturbed: Path, tmp_path: Path) -> None:
    """As after a kill at step 9: rows 6 to 9 and the held-out row of step 8 are there, the checkpoint is of step 5."""
    train(tmp_path, stop_after=9)
    (newest,) = [p for p in list_checkpoints(tmp_path / "checkpoints") if p.name.endswith("9")]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 0.1')
    train(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_kill_before_the_first_checkpoint_starts_anew(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, stop_after=2)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    train(tmp_path)  # the held-out row of step 0 must not be there twice
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_is_left_as_it_is(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    result = train(tmp_path)
    assert (result.step, result.interrupted) == (12, False)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("change", [{"max_steps": 20}, {"seed": 1}, {"batch_size": 4}])
def test_resuming_with_other_settings_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    train(tmp_path, stop_after=2)
    name, value = next(iter(change.items()))
    with pytest.raises(CheckpointError, match=f"with {name}=.* instead of {value}"):
        train(tmp_path, **change)


def test_resuming_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=r"unexpected encoder\.1\."):
        train(tmp_path, task=ToyTask(batch_norm=False))


def test_a_damaged_checkpoint_names_its_folder(tmp_path: Path) -> None:
    train(tmp_path, stop_after=2)
    latest = RunFolder(tmp_path).latest_checkpoint()
    assert latest is not None
    (latest / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="step_00000002"):
        train(tmp_path)


def test_accumulation_equals_the_large_batch_without_batch_statistics(tmp_path: Path) -> None:
    for accumulate in (1, 4):
        train(tmp_path / str(accumulate), task=ToyTask(batch_norm=False), accumulate=accumulate)
    one, four = rows(tmp_path / "1"), rows(tmp_path / "4")
    for a, b in zip(one, four, strict=True):  # the gradient norm too: Adam would hide a wrong scale
        assert b == pytest.approx(a, rel=1e-4)
    expected = saved_model(tmp_path / "1")
    for name, value in saved_model(tmp_path / "4").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


def test_accumulated_micro_batches_split_the_batch_in_order(tmp_path: Path) -> None:
    large, small = ToyTask(), ToyTask()
    train(tmp_path / "1", task=large, max_steps=2)
    train(tmp_path / "2", task=small, max_steps=2, accumulate=2)
    assert [len(b.indices) for b in small.seen] == [4] * 4
    assert [s for b in small.seen for s in b.seeds] == [s for b in large.seen for s in b.seeds]


def test_a_data_set_smaller_than_the_batch(tmp_path: Path) -> None:
    task = ToyTask()
    train(tmp_path, task=task, dataset=Points(3), max_steps=3)
    assert all(len(b.indices) == 8 for b in task.seen)
    assert len({s for b in task.seen for s in b.seeds}) == 24  # repeated points, new draws


def test_bf16(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, precision="bf16")
    assert all(t.dtype in (torch.float32, torch.int64) for t in saved_model(tmp_path).values())
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=0.02)
    assert losses(tmp_path) != losses(undisturbed)


def test_without_heldout_batches(tmp_path: Path) -> None:
    task = ToyTask().eval()
    fit(
        task,
        dataset=Points(),
        collate=collate,
        heldout=[],
        run=opened(tmp_path),
        config=config(),
        device=torch.device("cpu"),
    )
    assert task.training  # training switches it on, whatever it came with
    assert not any("heldout/rankme" in row for row in rows(tmp_path))


def test_monitors_see_eval_mode_and_leave_training_mode(tmp_path: Path) -> None:
    modes = []

    class Watching(ToyTask):
        def monitors(self, batches: Any) -> dict[str, float]:
            modes.append((self.training, torch.is_grad_enabled()))
            return {}

        def training_step(self, batch: Batch, step: int) -> Loss:
            assert self.training
            return super().training_step(batch, step)

    train(tmp_path, task=Watching())
    assert modes == [(False, False)] * 4


def test_schedule_reaches_the_optimiser(undisturbed: Path) -> None:
    schedule = config().schedule
    expected = [schedule.at(step, 12)[0] for step in range(12)]
    assert [row["learning_rate"] for row in rows(undisturbed) if "loss" in row] == expected


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(tmp_path, clip_norm=1e-3, max_steps=3)
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
    assert all(row["gradient_norm"] > 1e-2 for row in rows(tmp_path) if "loss" in row)


# Runs that make no sense.


@pytest.mark.parametrize(("nan_at", "kept"), [(0, 0), (7, 5)])
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, nan_at: int, kept: int
) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        train(tmp_path, task=ToyTask(nan_at=nan_at))
    message = str(caught.value)
    assert f"diverged at step {nan_at + 1}" in message
    assert f"step_{kept:08d}" in message
    assert "trainer.max_lr" in message
    assert steps_saved(tmp_path)[-1] == kept
    assert rows(tmp_path)[-1]["loss"] == "nan"
    train(tmp_path)  # from the good checkpoint, with the cause removed
    assert all(isinstance(value, float) for value in losses(tmp_path))


@pytest.mark.parametrize(("collapse_at", "noticed", "kept"), [(1, 4, 0), (6, 8, 5)])
def test_a_collapse_stops_the_run_and_leaves_a_checkpoint(
    tmp_path: Path, collapse_at: int, noticed: int, kept: int
) -> None:
    with pytest.raises(RepresentationCollapse, match=f"the toy collapsed .after step {noticed}; metrics in"):
        train(tmp_path, task=ToyTask(collapse_at=collapse_at))
    assert steps_saved(tmp_path)[-1] == kept
    assert rows(tmp_path)[-1]["step"] == noticed


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldmodel.training.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 0 cannot be written.*No space left"):
        train(tmp_path)


def test_something_that_is_not_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear lacks training_step"):
        train(tmp_path, task=nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_sample_that_cannot_be_read_is_an_error_from_workers_too(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    for workers in (0, 2):
        with pytest.raises(ValueError, match="point 3 cannot be read") as caught:
            train(tmp_path / str(workers), dataset=Points(fail_at_index=3), num_workers=workers)
        assert caught.tb is not None  # the traceback is alive, the loader processes are not
        assert set(multiprocessing.active_children()) == before


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_goes_on(undisturbed: Path, tmp_path: Path, number: int) -> None:
    class Interrupted(ToyTask):
        def after_step(self, step: int, total_steps: int) -> dict[str, float]:
            if step == 6:
                os.kill(os.getpid(), number)
            return super().after_step(step, total_steps)

    before = signal.getsignal(number)
    result = train(tmp_path, task=Interrupted())
    assert (result.step, result.interrupted) == (7, True)
    assert signal.getsignal(number) == before
    assert steps_saved(tmp_path)[-1] == 7
    train(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_signal_in_the_last_step_is_no_interruption(tmp_path: Path) -> None:
    class Late(ToyTask):
        def after_step(self, step: int, total_steps: int) -> dict[str, float]:
            if step == total_steps - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().after_step(step, total_steps)

    assert not train(tmp_path, task=Late()).interrupted


def test_a_later_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    with stop_on_signal() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.requested
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, passed on by a launcher
        monkeypatch.setattr("worldmodel.training.signals.time.monotonic", lambda: now + 10)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    from threading import Thread

    seen: list[StopRequest] = []

    def run() -> None:
        with stop_on_signal() as request:
            seen.append(request)

    before = signal.getsignal(signal.SIGINT)
    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert not seen[0].requested
    assert signal.getsignal(signal.SIGINT) == before


def test_weight_decay_may_leave_vectors_alone(tmp_path: Path) -> None:
    """With a learning rate that moves nothing but by decay, matrices shrink and vectors stay; and it resumes."""
    schedule = WarmupCosine(max_lr=1e-9, warmup=0)
    shrinking = {"schedule": schedule, "weight_decay": 1e7, "decay_vectors": False, "max_steps": 2}
    before = {name: p.detach().clone() for name, p in ToyTask().named_parameters()}
    train(tmp_path, **shrinking, stop_after=1)
    train(tmp_path, **shrinking)
    for name, value in saved_model(tmp_path).items():
        if name in before and not name.startswith("target"):
            ratio = float(value.norm() / before[name].norm()) if float(before[name].norm()) else 1.0
            assert (ratio < 0.99) == (before[name].ndim > 1), (name, ratio)


class Slower(ToyTask):
    def learning_rate_scale(self, name: str) -> float:
        return 0.25 if name.startswith("encoder.") else 1.0


def test_a_task_may_slow_parameters_down(tmp_path: Path) -> None:
    """The first step of Adam is the learning rate, whatever the gradient: a quarter of it for the encoder."""
    moved = {}
    for name, task in (("plain", ToyTask()), ("slower", Slower())):
        before = {n: p.detach().clone() for n, p in task.named_parameters()}
        train(tmp_path / name, task=task, max_steps=1, weight_decay=0.0)
        moved[name] = {n: (p.detach() - before[n]).abs().max() for n, p in task.named_parameters()}
    for name in ("encoder.0.weight", "predictor.weight"):
        share = float(moved["slower"][name] / moved["plain"][name])
        assert share == pytest.approx(0.25 if name.startswith("encoder") else 1.0, rel=1e-3)


def test_rates_of_a_resumed_run_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    train(tmp_path / "whole", task=Slower())
    train(tmp_path / "parts", task=Slower(), stop_after=6)
    train(tmp_path / "parts", task=Slower())
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
