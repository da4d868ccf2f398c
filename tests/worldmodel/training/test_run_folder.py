"""Run folders are never overwritten, and a resumed run has the settings it was started with."""

from pathlib import Path
from typing import Any

import pytest

from worldmodel.training.run_folder import RunFolder, RunFolderError, flatten

CONFIG: dict[str, Any] = {
    "seed": 0,
    "trainer": {"max_lr": 0.1, "device": "cpu", "device_count": 1},
    "run": {"dir": "a", "nested": {"x": 1}},
    "sizes": [1, 2],
}
VOLATILE = ("resume", "run.", "trainer.device")


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open(CONFIG, resume=False, volatile=VOLATILE)
    assert run.config.is_file()
    with pytest.raises(RunFolderError, match=r"already holds a run.*resume=true"):
        RunFolder(tmp_path / "run").open(CONFIG, resume=False, volatile=VOLATILE)
    del run
    RunFolder(tmp_path / "run").open(CONFIG, resume=True, volatile=VOLATILE)


def changed(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(seed=1), "seed: 0 -> 1"),
        (changed(trainer={**CONFIG["trainer"], "max_lr": 0.2}), "trainer.max_lr: 0.1 -> 0.2"),
        (changed(trainer={**CONFIG["trainer"], "device_count": 2}), "trainer.device_count: 1 -> 2"),
        (changed(sizes=[1, 3]), "sizes: "),
        (changed(extra=5), "extra: 'absent' -> 5"),
        ({k: v for k, v in CONFIG.items() if k != "seed"}, "seed: 0 -> 'absent'"),
    ],
)
def test_changed_settings_are_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    run = RunFolder(tmp_path)
    run.open(CONFIG, resume=False, volatile=VOLATILE)
    with pytest.raises(RunFolderError) as caught:
        run.open(config, resume=True, volatile=VOLATILE)
    assert message in str(caught.value)


def test_volatile_settings_may_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.open(CONFIG, resume=False, volatile=VOLATILE)
    config = changed(
        run={"dir": "b", "nested": {"x": 2}}, resume=True, trainer={**CONFIG["trainer"], "device": "cuda"}
    )
    run.open(config, resume=True, volatile=VOLATILE)


def test_tuples_and_lists_are_the_same_after_json(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.open(changed(sizes=(1, 2)), resume=False, volatile=())
    run.open(changed(sizes=[1, 2]), resume=True, volatile=())


def test_locate(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run to resume"):
        RunFolder.locate(None, job="job", root=tmp_path, resume=True)
    new = RunFolder.locate(None, job="job", root=tmp_path, resume=False)
    assert new.path.parent == tmp_path / "job"
    for name in ("2026-01-02_00-00-00", "2026-01-10_00-00-00"):
        RunFolder(tmp_path / "job" / name).open(CONFIG, resume=False, volatile=())
    (tmp_path / "job" / "2026-02-01_00-00-00").mkdir()  # no run in it
    assert RunFolder.locate(None, job="job", root=tmp_path, resume=True).path.name == "2026-01-10_00-00-00"
    assert RunFolder.locate(str(tmp_path / "x"), job="job", root=tmp_path, resume=True).path == tmp_path / "x"


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).latest_checkpoint() is None


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open(CONFIG, resume=False, volatile=VOLATILE)
    with pytest.raises(RunFolderError, match="another process"):
        second.open(CONFIG, resume=True, volatile=VOLATILE)
    del first
    RunFolder(tmp_path / "run").open(CONFIG, resume=True, volatile=VOLATILE)
