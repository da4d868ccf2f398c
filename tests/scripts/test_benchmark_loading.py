"""The comparison of readers: a tiny data set, this project's reader alone; what the tables say."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from envs.lerobot import Feature, LeRobotWriter


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = {
        "observation.image": Feature("image", (8, 8, 3), names=("height", "width", "channels")),
        "observation.state": Feature("float32", (2,)),
        "action": Feature("float32", (2,)),
    }
    root, rng = tmp_path_factory.mktemp("loading") / "set", np.random.default_rng(0)
    with LeRobotWriter(root, features=features, fps=10) as writer:
        for _ in range(3):
            rows = {
                key: rng.normal(size=(5, 2)).astype(np.float32) for key in ("observation.state", "action")
            }
            writer.append(
                {**rows, "observation.image": rng.integers(0, 256, (5, 8, 8, 3), np.uint8)}, task="x"
            )
    return root


def test_both_passes_see_the_same(script: Callable[[str], ModuleType], data: Path) -> None:
    first, second = script("benchmark_loading").measure("ours", data)
    assert first["frames"] == second["frames"] == 15
    assert first["checksum"] == pytest.approx(second["checksum"], rel=1e-6)
    assert first["cpu_seconds"] > 0


def test_without_lerobot(
    script: Callable[[str], ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEROBOT_PYTHON", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmark_loading.py", str(data), f"--out={tmp_path}", "--repeats=1"])
    script("benchmark_loading").main()
    result = json.loads((tmp_path / "lerobot_loading.json").read_text())
    assert [row["frames"] for row in result["summary"]] == [15, 15]
    assert result["ratios"] == {}
    assert "| ours | decode all into memory |" in (tmp_path / "lerobot_loading.md").read_text()


def test_ratios_count_the_decoding_once(script: Callable[[str], ModuleType]) -> None:
    module = script("benchmark_loading")
    rates = {module.DECODE: 300, module.SERVE: 3000, module.DECODE_AND_SERVE: 100}
    rows = [
        {"pass": name, "frames/cpu-s, median": rate, "frames/s, median": 2 * rate}
        for name, rate in rates.items()
    ]
    found = module.ratios(rows).values()
    for unit in ("frames/s", "frames/cpu-s"):
        assert [value[unit] for value in found] == pytest.approx(
            [3, 0.01 / (1 / 300 + 1 / 3000), 0.1 / (1 / 300 + 10 / 3000)]
        )


def test_errors_name_the_fix(
    script: Callable[[str], ModuleType], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for arguments, complaint in (
        ([str(tmp_path)], "is not a LeRobot data set"),
        ([str(data), f"--lerobot-python={sys.executable}"], "the reader lerobot failed"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmark_loading.py", "--repeats=1", *arguments])
        with pytest.raises(SystemExit):
            script("benchmark_loading").main()
        assert complaint in capsys.readouterr().err
