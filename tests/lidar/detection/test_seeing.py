"""Pictures, the report page and the viewers: what is drawn lies where it is, and pages are whole."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from lidar.detection import viewer_open3d
from lidar.detection.failures import JudgedFrame, Mark
from lidar.detection.marked import COLOURS, MarkedFrame, judged_picture, marked_frame, thinned
from lidar.detection.pictures import from_above, in_space
from lidar.detection.report import Evaluated, precision_recall, write_report
from lidar.detection.viewer_html import write_viewer
from lidar.detection.viewer_open3d import Browser, NoDisplay, has_display, require_open3d, show, strokes
from lidar.detection.viewer_page import PAGE
from tests.lidar.detection.test_failures import CLASSES, OVERLAP, car, detections, judged, objects


def points(count: int = 500) -> np.ndarray:
    return np.random.default_rng(0).uniform((0, -10, -2, 0), (40, 10, 1, 1), (count, 4)).astype(np.float32)


def frame() -> JudgedFrame:
    """A car that is found, one that is missed, a false detection."""
    return judged(
        objects([car(10, heading=0.3), car(20)]), detections([car(10, heading=0.3), car(30)], [0.9, 0.8])
    )


def picture() -> MarkedFrame:
    return judged_picture(frame(), points(), classes=CLASSES)


def test_boxes_are_drawn_where_they_are_with_their_heading() -> None:
    shown = picture()
    assert shown.marks == (Mark.FOUND, Mark.MISSED, Mark.CORRECT, Mark.FALSE)
    figure = from_above(shown, extent=(0, 40, -15, 15))
    rings, headings = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    assert [len(rings.get_segments()), len(headings.get_segments())] == [4, 4]
    along = np.array([np.cos(0.3), np.sin(0.3)])
    front_left = np.array([10, 0]) + 2 * along + 0.9 * np.array([-along[1], along[0]])
    np.testing.assert_allclose(rings.get_segments()[0][0], front_left, atol=1e-5)
    np.testing.assert_allclose(headings.get_segments()[0], [[10, 0], [10, 0] + 2.5 * along], atol=1e-5)
    # What is false is crossed out, what is missed is filled, all points are there.
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [30.0]
    assert len(figure.axes[0].patches) == 1
    dots = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == ".")
    assert dots == 500
    plt.close(figure)


def test_boxes_far_from_a_detail_are_left_out() -> None:
    figure = from_above(picture(), extent=(15, 25, -5, 5))
    rings = next(c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    assert len(rings.get_segments()) == 1
    plt.close(figure)


def test_pictures_of_an_empty_frame_and_in_space() -> None:
    nothing = marked_frame("empty", np.zeros((0, 4), np.float32), classes=CLASSES)
    for draw in (from_above, in_space):
        for shown in (nothing, picture()):
            figure = draw(shown)
            figure.canvas.draw()
            plt.close(figure)


def test_colours_and_marks() -> None:
    shown = marked_frame(
        "a", points(), classes=CLASSES, objects=objects([car(5), car(9)], names=("Pedestrian", "Tram")),
        detections=detections([car(5)], [0.5]),
    )  # fmt: skip
    assert shown.marks == (Mark.LABELLED, Mark.LABELLED, Mark.DETECTED)
    assert [shown.colour(k) for k in (0, 2)] == [COLOURS[1], COLOURS[0]]
    assert len({shown.colour(k) for k in range(3)}) == 3
    with pytest.raises(ValueError, match="1 marks for 2 boxes"):
        marked_frame("a", points(), classes=CLASSES, objects=objects([car(5), car(9)]), marks=[Mark.FOUND])
    with pytest.raises(ValueError, match=r"points are \[N, 3\] or wider"):
        marked_frame("a", np.zeros((4, 2)), classes=CLASSES)


def test_thinning_keeps_the_ends() -> None:
    assert thinned(np.arange(10)[:, None], 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert len(thinned(points(5), 9)) == 5


def test_the_report_is_one_file_with_the_worst_failures(tmp_path: Path) -> None:
    worst = judged(objects([]), detections([car(12)], [0.95]), name="<worst>")
    evaluated = Evaluated(
        title="a detector", rules="Rules.", table="Car 50", curves={"Car": {"3d": np.linspace(1, 0, 41)}},
        frames=[frame(), worst], score=0.3, matching=OVERLAP, classes=CLASSES, points_of=lambda place: points(),
        viewer="failures.html", about={"run": "runs/x"},
    )  # fmt: skip
    assert write_report(tmp_path / "report.html", evaluated) == [1, 0]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    assert "&lt;worst&gt;" in page
    for text in ("nothing labelled there", "<td>0.95</td>", "<td>12.0</td>", "IoU 0.70 (Car)", "runs/x"):
        assert text in page
    assert not plt.get_fignums()


def test_curves_without_objects_are_left_out() -> None:
    figure = precision_recall({"Car": {"3d": np.ones(41)}, "Tram": {"3d": np.full(41, np.nan)}})
    assert [axis.get_title() for axis in figure.axes] == ["Car"]
    plt.close(figure)
    figure = precision_recall({"Tram": {"3d": np.full(41, np.nan)}})
    assert figure.axes[0].get_title() == "no object counts"
    plt.close(figure)


def frames_of(page: str) -> list[dict[str, Any]]:
    line = next(line for line in page.splitlines() if line.startswith("const FRAMES = "))
    return json.loads(line.removeprefix("const FRAMES = ").removesuffix(";"))


def test_the_page_holds_points_and_boxes(tmp_path: Path) -> None:
    far = np.concatenate([points(), [[400, 0, 0, 0]]]).astype(np.float32)
    shown = judged_picture(frame(), far, classes=CLASSES)
    write_viewer(tmp_path / "new" / "view.html", [shown, picture()], title="</script> & co", most_points=100)
    page = (tmp_path / "new" / "view.html").read_text()
    assert page.count("</script>") == 1
    assert "http" not in page
    assert "@" not in page.replace("@media", "")
    first, second = frames_of(page)
    packed = np.frombuffer(base64.b64decode(second["points"]), "<i2").reshape(-1, 3) / 100
    np.testing.assert_allclose(packed, thinned(points(), 100)[:, :3], atol=0.00501)
    assert first["total"] == 501
    assert [box["object"] for box in first["boxes"]] == [True, True, False, False]
    assert [box["text"] for box in first["boxes"]] == [
        "Car, found", "Car, missed", "Car 0.90, correct", "Car 0.80, false",
    ]  # fmt: skip
    np.testing.assert_allclose(np.mean(first["boxes"][1]["corners"], axis=0), car(20)[:3], atol=0.01)
    with pytest.raises(ValueError, match="at least one frame"):
        write_viewer(tmp_path / "none.html", [], title="none")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_camera_of_the_page() -> None:
    """Its rotation is one, what it looks at is in the middle, and strokes are cut off behind it."""
    script = PAGE.split("<script>")[1].split("</script>")[0]
    script = script.replace("@EDGES@", "[]").replace("@FRAMES@", "[]")
    ask = """
    const view = {azimuth: 2.1, elevation: 0.4, distance: 30, target: [5, -3, 1]}, c = cameraOf(view);
    const packed = Buffer.from(new Int16Array([1, -2, 300]).buffer).toString("base64");
    console.log(JSON.stringify({c, target: seen(c, 5, -3, 1), left: seen(c, 0, 0, 0),
      cut: cut([0, 0, -1], [2, 0, 1]), behind: cut([0, 0, -1], [0, 0, 0]), points: [...unpack(packed)],
      ground: ground(new Int16Array([0, 0, 5, 0, 0, 9]))}));
    """
    done = subprocess.run(["node", "-e", script + ask], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    rotation = np.array([told["c"]["right"], told["c"]["up"], told["c"]["back"]])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(told["target"], [0, 0, 30], atol=1e-9)
    expected = rotation @ (np.zeros(3) - told["c"]["place"]) * [1, 1, -1]
    np.testing.assert_allclose(told["left"], expected, atol=1e-9)
    np.testing.assert_allclose(told["cut"], [[1.5, 0, 0.5], [2, 0, 1]])
    assert told["behind"] is None
    assert told["points"] == [1, -2, 300]
    assert told["ground"] == 5


def test_the_browser_goes_around_and_reads_each_frame_once() -> None:
    read: list[int] = []

    def frame_at(place: int) -> MarkedFrame:
        read.append(place)
        return picture()

    browser = Browser(3, frame_at, first=2)
    browser.step(1)
    browser.frame()
    browser.lines()
    assert (browser.place, read) == (0, [0])
    with pytest.raises(ValueError, match="no frames"):
        Browser(0, frame_at)


def test_strokes_of_the_boxes_that_are_shown() -> None:
    shown = picture()
    ends, pairs, colours = strokes(shown)
    assert pairs.shape == (4 * 13 + 2, 2)  # twelve edges and a heading each, a cross on what is false
    assert ends.shape == (40, 3)
    assert pairs.max() == 39
    assert colours.shape == (54, 3)
    assert len(strokes(shown, objects=False)[1]) == 28
    assert len(strokes(shown, objects=False, detections=False)[1]) == 0
    lengths = np.linalg.norm(np.diff(ends[pairs[:12]], axis=1), axis=2).ravel()
    np.testing.assert_allclose(np.sort(lengths), np.repeat([1.6, 1.8, 4.0], 4), atol=1e-5)


class Window:
    """Stands in for Open3D's window: presses keys, then ends."""

    def __init__(self, *, opens: bool) -> None:
        self.opens, self.keys, self.updates = opens, {}, 0

    def create_window(self, **size: Any) -> bool:
        return self.opens

    def register_key_callback(self, key: int, act: Any) -> None:
        self.keys[key] = act

    def update_geometry(self, geometry: Any) -> None:
        self.updates += 1

    def run(self) -> None:
        for key in (262, ord("P"), ord("N"), ord("L")):
            self.keys[key](self)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: SimpleNamespace(
            set_front=id, set_up=id, set_lookat=id, set_zoom=id, background_color=None, point_size=None
        )


def open3d(window: Window) -> SimpleNamespace:
    made = [SimpleNamespace() for _ in range(2)]
    return SimpleNamespace(
        visualization=SimpleNamespace(VisualizerWithKeyCallback=lambda: window),
        geometry=SimpleNamespace(PointCloud=lambda: made[0], LineSet=lambda: made[1]),
        utility=SimpleNamespace(Vector3dVector=np.asarray, Vector2iVector=np.asarray),
    )


def test_keys_of_the_window(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    window = Window(opens=True)
    monkeypatch.setitem(sys.modules, "open3d", open3d(window))
    monkeypatch.setattr(viewer_open3d, "has_display", lambda: True)
    browser = Browser(5, lambda place: picture())
    show(browser)
    assert browser.place == 1
    assert (browser.objects, browser.detections) == (False, True)
    assert window.updates == 8
    assert "2/5  a" in capsys.readouterr().out


def test_without_a_window_the_error_names_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", open3d(Window(opens=False)))
    for there in (True, False):
        monkeypatch.setattr(viewer_open3d, "has_display", lambda there=there: there)
        with pytest.raises(NoDisplay, match="--html FILE"):
            show(Browser(1, lambda place: picture()))


def test_without_open3d_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r"robot-worldmodel\[viz\]"):
        require_open3d()


def test_displays() -> None:
    assert not has_display({}, platform="linux")
    assert has_display({"DISPLAY": ":0"}, platform="linux")
    assert has_display({"WAYLAND_DISPLAY": "wayland-0"}, platform="linux")
    assert has_display({}, platform="darwin")
