"""What the report of a run shows of its monitors."""

import json

import torch

from lidar.batch import PointCloudBatch
from lidar.experiment import PretrainingData
from lidar.recipe import OccupancyConfig
from lidar.report import _HEALTH, _PANELS, _health, write_report
from worldmodel.training import RunFolder
from worldmodel.training.report import Report

from .scenes import batch_of, cloud, tiny_task

OCCUPANCY = OccupancyConfig(positive_weight=1.0, cells="all")


def heldout() -> list[PointCloudBatch]:
    return [batch_of([cloud(1), cloud(2)])]


def test_every_held_out_number_of_the_report_is_monitored():
    monitored = {*tiny_task().monitors(heldout()), *tiny_task(OCCUPANCY).monitors(heldout())}
    shown = {*_HEALTH, *(name for names in _PANELS.values() for name in names if name.startswith("heldout/"))}
    assert shown <= {f"heldout/{name}" for name in monitored}


def test_the_page_of_occupancy_prediction_shows_its_own_numbers(tmp_path):
    task, run = tiny_task(OCCUPANCY), RunFolder(tmp_path / "run")
    run.open({"trainer": {"accumulate": 1}}, resume=False, volatile=())
    rows = [
        {"step": 1, "time/frames_per_s": 1.0, "loss": 1.0},
        {"step": 1, **{f"heldout/{name}": value for name, value in task.monitors(heldout()).items()}},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Source:
        name = "clouds"

    data = PretrainingData(source=Source(), train=(), heldout=())  # type: ignore[arg-type]
    pictures = [batch_of([cloud(1)])]
    with torch.no_grad():
        page = write_report(
            task,
            run=run,
            data=data,
            heldout=heldout(),
            pictures=pictures,
            result=None,
            why_no_probe="no labels",
        )
    text = page.read_text()
    assert "Occupancy pretraining report" in text
    assert "average precision of occupancy in masked cells" in text
    assert "What it sees" not in text
    assert json.loads((run.path / "results.json").read_text())["m1_reduction"] == 0.0


def test_a_monitor_that_is_undefined_is_shown_as_such(tmp_path):
    """Metrics hold it as a string."""
    rows = {"heldout/rankme": 2.0, "heldout/lda_rank": "nan"}
    page = Report("title", figures=tmp_path / "figures")
    _health(page, {"first": rows, "last": rows, "m1_reduction": 0.5})
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "LDA-rank of cells under sensor noise" in text
    assert "<td>nan</td>" in text
