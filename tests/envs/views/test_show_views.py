"""The contact sheet shows every view once, in order."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from show_views import contact_sheet, main

from envs.views.rotations import PosedViews


def test_sheet_has_a_row_per_episode(tmp_path: Path) -> None:
    views = np.random.default_rng(0).random((3, 4, 1, 5, 6), np.float32)
    source = PosedViews(views=views, rotations=np.ones((3, 4, 4)) / 2, classes=np.arange(3))
    sheet = contact_sheet(source, rows=3, steps=4, seed=0)
    cell = 96 // 6
    assert sheet.shape == (3 * (5 * cell + 2), 4 * (6 * cell + 2), 3)
    seen = source.sample(1, steps=4, generator=np.random.default_rng((0, 1))).observations[2, 0]
    top, left = 5 * cell + 2 + 1, 2 * (6 * cell + 2) + 1
    shown = sheet[top : top + 5 * cell : cell, left : left + 6 * cell : cell, 0]
    np.testing.assert_array_equal(shown, np.rint(255 * seen))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["saccades", str(tmp_path / "sheet.png"), "--rows", "2", "--steps", "3", "--split", "test"])
    assert Image.open(tmp_path / "sheet.png").size == (3 * 98, 2 * 98)
    assert "1000 items; action: down" in capsys.readouterr().out
    for wrong, message in {"--rows=0": "at least one row", "--steps=17": "16 views"}.items():
        with pytest.raises(SystemExit):
            main(["digits", str(tmp_path / "sheet.png"), "--split", "test", wrong])
        assert message in capsys.readouterr().err
