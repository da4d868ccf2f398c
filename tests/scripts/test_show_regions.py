"""Regions of a map on disk: histogram printed, picture written, bad files named."""

import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import show_regions


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["show_regions.py", *arguments])
    show_regions.main()


def test_map_to_histogram_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = np.full((2, 8, 8), 0.1)
    maps[0, :4, :4], maps[0, 6:, 6:], maps[1, 0, 0] = 1.0, 0.8, np.nan
    np.save(tmp_path / "maps.npy", maps)
    out = tmp_path / "regions.png"
    run(monkeypatch, "--map", str(tmp_path / "maps.npy"), "--alpha", "0.05", "--out", str(out))
    assert "2 maps; share with n regions: 0: 0.500, 1: 0.000, 2: 0.500" in capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "row.npy", np.zeros(4))
    for arguments, message in {
        ("--map", str(tmp_path / "row.npy")): "not a map",
        ("--map", str(tmp_path / "missing.npy")): "missing.npy",
        ("--alpha", "2", "--map", str(tmp_path / "square.npy")): "alpha",
    }.items():
        np.save(tmp_path / "square.npy", np.eye(4))
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert message in capsys.readouterr().err
