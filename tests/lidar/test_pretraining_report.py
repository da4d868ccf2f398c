"""What the report of a run shows of its monitors."""

from lidar.report import _HEALTH, _PANELS, _health
from worldmodel.training.report import Report

from .scenes import batch_of, cloud, tiny_task


def test_every_held_out_number_of_the_report_is_monitored():
    values = tiny_task().monitors([batch_of([cloud(1), cloud(2)])])
    shown = {*_HEALTH, *(name for names in _PANELS.values() for name in names if name.startswith("heldout/"))}
    assert shown <= {f"heldout/{name}" for name in values}


def test_a_monitor_that_is_undefined_is_shown_as_such(tmp_path):
    """Metrics hold it as a string."""
    rows = {"heldout/rankme": 2.0, "heldout/lda_rank": "nan"}
    page = Report("title", figures=tmp_path / "figures")
    _health(page, {"first": rows, "last": rows, "m1_reduction": 0.5})
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "LDA-rank of cells under sensor noise" in text
    assert "<td>nan</td>" in text
