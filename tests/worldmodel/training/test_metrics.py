"""metrics.jsonl survives crashes; wandb is asked for or absent."""

import json
import sys
from pathlib import Path

import pytest

from worldmodel.training.metrics import MetricsLog, read_metrics


def write(path: Path, steps: list[int], *, finished: int | None) -> None:
    log = MetricsLog(path, finished_steps=finished)
    for step in steps:
        log.write(step, {"loss": step / 10})
    log.close()


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 1, 2, 3, 3, 4], finished=None)
    write(path, [4, 5], finished=3)
    assert steps(path) == [0, 1, 2, 3, 3, 4, 5]
    write(path, [1], finished=0)
    assert steps(path) == [0, 1]
    write(path, [0, 1], finished=None)  # no checkpoint: from the beginning, not even row 0 stays
    assert steps(path) == [0, 1]


@pytest.mark.parametrize(
    "tail", ['{"step": 2, "lo', "\0\0\0", "\udce4".encode("utf-8", "surrogateescape").decode("latin1")]
)
def test_a_torn_last_line_is_ignored_and_gone_after_resuming(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1], finished=None)
    path.write_bytes(path.read_bytes() + tail.encode("latin1"))
    assert steps(path) == [1]
    write(path, [2], finished=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2"):
        read_metrics(path)


def test_numbers_that_are_not_finite_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, finished_steps=None)
    log.write(1, {"a": float("nan"), "b": float("-inf"), "c": 2.5})
    log.sync()
    assert read_metrics(path) == [{"step": 1, "a": "nan", "b": "-inf", "c": 2.5}]  # readable before close
    log.close()


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(None, finished_steps=None, wandb_mode="online")
    log.write(1, {"loss": 1.0})
    log.sync()
    log.close()
    assert not list(tmp_path.iterdir())


def test_missing_wandb_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install -e .*wandb.*trainer.wandb=disabled"):
        MetricsLog(tmp_path / "metrics.jsonl", finished_steps=None, wandb_mode="offline")


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    log = MetricsLog(tmp_path / "metrics.jsonl", finished_steps=None, wandb_mode="offline", run_name="toy")
    log.write(1, {"loss": 0.5, "bad": float("nan")})
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "bad": "nan"}]
