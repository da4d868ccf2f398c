"""Damaged data sets, and those of other people."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.lerobot import DatasetFormatError, Feature, LeRobotDataset, LeRobotEpisodes, LeRobotWriter
from envs.lerobot.columns import from_column
from tests.envs.lerobot.conftest import LENGTHS

DATA = "data/chunk-000/file-000.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: cut(r / DATA), "file-000.parquet is truncated"),
        (lambda r: (r / DATA).unlink(), "file-000.parquet is missing"),
        (lambda r: cut(r / "meta/episodes/chunk-000/file-001.parquet"), "truncated or no Parquet"),
        (
            lambda r: (r / "meta/episodes/chunk-000/file-000.parquet").unlink(),
            "does not hold the episodes 0 to 1",
        ),
        (lambda r: cut(r / "meta/tasks.parquet"), "tasks.parquet is truncated"),
        (lambda r: (r / "meta/tasks.parquet").unlink(), "tasks.parquet is missing"),
        (lambda r: (r / "meta/info.json").write_text("{"), "info.json is damaged"),
        (lambda r: edit(r / "meta/info.json", lambda c: c.pop("fps")), "info.json is damaged or lacks"),
        (lambda r: edit(r / "meta/info.json", lambda c: c.update(codebase_version="v2.1")), "version v2.1"),
        (lambda r: (r / "data/chunk-000/file-001.parquet").replace(r / DATA), "does not hold frames"),
    ],
)
def test_damage_is_named(fresh: Callable[[], Path], damage: Callable[[Path], object], message: str) -> None:
    root = fresh()
    damage(root)
    with pytest.raises(DatasetFormatError, match=message):
        LeRobotDataset(root).frames("action", episode=0)


def test_wrong_requests(recorded: Path, tmp_path: Path) -> None:
    dataset = LeRobotDataset(recorded)
    with pytest.raises(FileNotFoundError, match=r"not a LeRobot data set: it has no meta/info\.json"):
        LeRobotDataset(tmp_path)
    with pytest.raises(KeyError, match=r"no feature 'camera'; it has observation\.image"):
        dataset.frames("camera", episode=0)
    with pytest.raises(IndexError, match="no episode 4"):
        dataset.frames("action", episode=4)
    with pytest.raises(IndexError, match="has 5 frames, not 2 to 6"):
        dataset.frames("action", episode=0, start=2, stop=6)


def test_damaged_statistics(fresh: Callable[[], Path]) -> None:
    root = fresh()
    (root / "meta/stats.json").write_text("[")
    with pytest.raises(DatasetFormatError, match=r"stats\.json is damaged"):
        _ = LeRobotDataset(root).stats
    (root / "meta/stats.json").unlink()
    assert LeRobotDataset(root).stats == {}


def test_an_unfinished_recording(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "set", features={"x": Feature("int64", (1,))}, fps=1)
    writer.append({"x": np.arange(3)}, task="count")
    with pytest.raises(DatasetFormatError, match=r"LeRobotWriter\.reopen\(root\)\.close\(\) recovers it"):
        LeRobotDataset(tmp_path / "set")


def test_truncated_video(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", features={"c": Feature("video", (16, 16, 3))}, fps=10) as writer:
        writer.append({"c": np.zeros((6, 16, 16, 3), np.uint8)}, task="dark")
    dataset = LeRobotDataset(tmp_path / "set")
    path = tmp_path / "set/videos/c/chunk-000/file-000.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetFormatError, match="truncated or no video"):
        dataset.frames("c", episode=0)
    path.unlink()
    with pytest.raises(DatasetFormatError, match="missing"):
        dataset.frames("c", episode=0)


def test_a_video_that_ends_too_early(tmp_path: Path) -> None:
    for name, length in (("short", 3), ("set", 6)):
        with LeRobotWriter(tmp_path / name, features={"c": Feature("video", (16, 16, 3))}, fps=10) as writer:
            writer.append({"c": np.zeros((length, 16, 16, 3), np.uint8)}, task="dark")
    short, path = (tmp_path / name / "videos/c/chunk-000/file-000.mp4" for name in ("short", "set"))
    path.write_bytes(short.read_bytes())
    with pytest.raises(DatasetFormatError, match=r"no frame within 0\.05 s of 0\.300 s"):
        LeRobotDataset(tmp_path / "set").frames("c", episode=0)


def test_data_and_videos_in_files_of_different_numbers(tmp_path: Path) -> None:
    """The reference package begins new data and video files independently of each other, and names motors in a dict."""
    root, lengths, rng = tmp_path / "set", (3, 4, 2), np.random.default_rng(0)
    features = {
        "images.top": Feature("video", (16, 16, 3)),
        "images.wrist": Feature("video", (8, 16, 3)),
        "action": Feature("float32", (2,), names={"motors": ["a", "b"]}),
    }
    actions = [rng.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    with LeRobotWriter(root, features=features, fps=10) as writer:
        for number, values in enumerate(actions):
            shades = np.uint8(60 * number + 10 * np.arange(len(values)))[:, None, None, None]
            images = {
                name: np.tile(shades, (1, *features[name].shape)) for name in ("images.top", "images.wrist")
            }
            writer.append({**images, "action": values}, task="wave")
    before = LeRobotDataset(root)
    videos = {(key, i): before.frames(key, episode=i) for key in before.info.keys("video") for i in range(3)}

    whole = pq.ParquetFile(root / DATA).read()
    pq.write_table(whole.slice(0, sum(lengths[:2])), root / DATA)
    moved = root / "data/chunk-001/file-000.parquet"
    moved.parent.mkdir()
    pq.write_table(whole.slice(sum(lengths[:2])), moved)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.ParquetFile(path).read()
    column = rows.column_names.index("data/chunk_index")
    pq.write_table(rows.set_column(column, "data/chunk_index", pa.array([0, 0, 1])), path)

    dataset = LeRobotDataset(root)
    assert [entry.place.chunk for entry in dataset.episodes] == [0, 0, 1]
    for i, values in enumerate(actions):
        np.testing.assert_array_equal(dataset.frames("action", episode=i), values)
    for (key, i), pixels in videos.items():
        np.testing.assert_array_equal(dataset.frames(key, episode=i), pixels)
    assert LeRobotEpisodes(dataset, observation="images.top").action.names == ("a", "b")
    with LeRobotWriter.reopen(root) as writer:
        images = {key: videos[key, 0] for key in dataset.info.keys("video")}
        writer.append({**images, "action": actions[0]}, task="wave")
    longer = LeRobotDataset(root)
    for i, values in enumerate([*actions, actions[0]]):
        np.testing.assert_array_equal(longer.frames("action", episode=i), values)


def test_one_row_group_and_lists_of_any_length(fresh: Callable[[], Path]) -> None:
    """Data sets converted from older versions have all episodes in one row group, and plain lists."""
    root = fresh()
    before = LeRobotDataset(root)
    expected = [before.frames("action", episode=i) for i in range(len(LENGTHS))]
    for path in root.glob("data/*/*.parquet"):
        table = pq.ParquetFile(path).read()
        plain = pa.array(table["action"].to_pylist(), pa.list_(pa.float32()))
        table = table.set_column(table.column_names.index("action"), "action", plain)
        pq.write_table(table.replace_schema_metadata(None), path)
    dataset = LeRobotDataset(root)
    for i, actions in enumerate(expected):
        np.testing.assert_array_equal(dataset.frames("action", episode=i), actions)


@pytest.mark.parametrize(
    ("column", "feature", "message"),
    [
        (pa.array([[1.0], [2.0]]), Feature("float32", (2,)), "2 numbers in 2 frames"),
        (pa.array([1.0, None]), Feature("float32", (1,)), "1 missing values"),
        (pa.array([{"a": 1}]), Feature("float32", (1,)), "its column is struct"),
        (pa.array([{"bytes": None, "path": "a.png"}]), Feature("image", (4, 4, 3)), "not embedded"),
        (pa.array([{"bytes": b"no image", "path": ""}]), Feature("image", (4, 4, 3)), "cannot be read"),
    ],
)
def test_columns_that_contradict_the_feature(column: pa.Array, feature: Feature, message: str) -> None:
    with pytest.raises(DatasetFormatError, match=message):
        from_column(pa.chunked_array([column]), feature, name="x")


def test_images_of_another_size(fresh: Callable[[], Path]) -> None:
    root = fresh()
    edit(root / "meta/info.json", lambda c: c["features"]["observation.image"].update(shape=[8, 6, 3]))
    with pytest.raises(DatasetFormatError, match=r"says images \(8, 6, 3\) \(H, W, C\), found \(6, 8, 3\)"):
        LeRobotDataset(root).frames("observation.image", episode=0)
