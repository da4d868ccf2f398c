"""The files are those of the reference package, lerobot 0.6.1, written down here by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.lerobot import LeRobotDataset
from envs.lerobot.schema import Feature, read_table, read_tasks
from envs.lerobot.statistics import episode_statistics, merge_statistics
from tests.envs.lerobot.conftest import LENGTHS, frames_of


def test_files(recorded: Path) -> None:
    found = sorted(str(p.relative_to(recorded)) for p in recorded.rglob("*") if p.is_file())
    assert found == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-001.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
    ]


def test_info(recorded: Path) -> None:
    info = json.loads((recorded / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "toy",
        "total_episodes": 4,
        "total_frames": 17,
        "total_tasks": 3,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }
    assert features["observation.state"] == {
        "dtype": "float32",
        "shape": [4],
        "names": ["x", "y", "vx", "vy"],
    }
    assert features["observation.image"]["dtype"] == "image"
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        assert features[name] == {"dtype": "int64", "shape": [1], "names": None}


def test_data_columns_and_types(recorded: Path) -> None:
    schema = pq.read_schema(recorded / "data/chunk-000/file-000.parquet")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    expected = {
        "observation.image": image,
        "observation.gray": image,
        "observation.state": pa.list_(pa.float32(), 4),
        "grid": pa.list_(pa.list_(pa.list_(pa.float32()))),
        "matrix": pa.list_(pa.list_(pa.int64())),
        "action": pa.list_(pa.float32(), 2),
        "reward": pa.float32(),
        "next.done": pa.bool_(),
        "note": pa.string(),
        "timestamp": pa.float32(),
        "frame_index": pa.int64(),
        "episode_index": pa.int64(),
        "index": pa.int64(),
        "task_index": pa.int64(),
    }
    assert schema.names == list(expected)
    for name, kind in expected.items():
        assert schema.field(name).type.equals(kind), name
    types = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert types["observation.image"] == {"_type": "Image"}
    assert types["reward"] == {"dtype": "float32", "_type": "Value"}
    assert types["action"] == {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 2,
        "_type": "List",
    }
    assert types["grid"] == {"shape": [2, 3, 5], "dtype": "float32", "_type": "Array3D"}


def test_a_row_group_per_episode_and_bookkeeping(recorded: Path) -> None:
    first, second = (pq.ParquetFile(recorded / f"data/chunk-000/file-00{i}.parquet") for i in range(2))
    sizes = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in (first, second)]
    assert sizes == [[5, 1], [8, 3]]
    table = second.read()
    assert table["index"].to_pylist() == list(range(6, 17))
    assert table["episode_index"].to_pylist() == [2] * 8 + [3] * 3
    assert table["frame_index"].to_pylist() == [*range(8), *range(3)]
    assert table["task_index"].to_pylist() == [0] * 8 + [2] * 3
    np.testing.assert_array_equal(table["timestamp"][:8].to_numpy(), (np.arange(8) / 10).astype(np.float32))
    image = table["observation.image"][0].as_py()
    assert image["bytes"].startswith(b"\x89PNG")
    assert image["path"] == "frame-000000.png"


def test_episode_rows(recorded: Path) -> None:
    table = read_table(recorded / "meta/episodes/chunk-000/file-001.parquet")
    row = table.to_pylist()[0]
    plain = {name: value for name, value in row.items() if not name.startswith("stats/")}
    assert plain == {
        "episode_index": 2,
        "tasks": ["go left"],
        "length": 8,
        "data/chunk_index": 0,
        "data/file_index": 1,
        "dataset_from_index": 6,
        "dataset_to_index": 14,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 1,
    }
    assert table.schema.field("tasks").type == pa.list_(pa.string())
    assert row["stats/action/count"] == [8]
    assert np.shape(row["stats/observation.image/mean"]) == (3, 1, 1)
    assert np.shape(row["stats/reward/max"]) == (1,)


def test_tasks_are_the_index_of_a_pandas_frame(recorded: Path) -> None:
    table = pq.read_table(recorded / "meta/tasks.parquet")
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert table.to_pydict() == {"task_index": [0, 1, 2], "task": ["go left", "go right", "stay"]}


def test_tasks_of_other_writers(tmp_path: Path) -> None:
    """Older versions of the reference call the index __index_level_0__, in any order."""
    (tmp_path / "meta").mkdir()
    table = pa.table({"task_index": [1, 0], "__index_level_0__": ["b", "a"]})
    pq.write_table(table, tmp_path / "meta/tasks.parquet")
    assert read_tasks(tmp_path) == ["a", "b"]


def test_statistics_are_those_of_all_frames(recorded: Path) -> None:
    stats = LeRobotDataset(recorded).stats
    whole = [frames_of(n, seed) for seed, n in enumerate(LENGTHS)]
    action = np.concatenate([f["action"] for f in whole]).astype(np.float64)
    pixels = np.concatenate([f["observation.image"] for f in whole]) / 255
    for name, of in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        np.testing.assert_allclose(stats["action"][name], of(action, axis=0), rtol=1e-9)
        np.testing.assert_allclose(
            stats["observation.image"][name].ravel(), of(pixels, axis=(0, 1, 2)), rtol=1e-9
        )
    assert stats["action"]["count"].tolist() == [17]
    assert "note" not in stats


def test_quantiles_of_one_episode_are_exact() -> None:
    x = np.random.default_rng(0).normal(size=(501, 1)).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 256, (9, 5, 7, 1), np.uint8)
    features = {"x": Feature("float32", (1,)), "image": Feature("image", (5, 7, 1))}
    stats = merge_statistics([episode_statistics({"x": x, "image": pixels}, features)])
    np.testing.assert_allclose(stats["x"]["q10"], np.quantile(x, 0.1, axis=0), rtol=1e-6)
    expected = np.quantile(pixels, 0.9, method="inverted_cdf") / 255
    assert stats["image"]["q90"].ravel() == pytest.approx(expected)


def test_without_pyarrow_the_extra_is_named() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import envs.lerobot.reader"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'robot-worldmodel[lerobot]'" in done.stderr
