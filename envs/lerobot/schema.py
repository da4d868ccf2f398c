"""The LeRobotDataset v3.0 layout: features, paths, Arrow types and the fixed parts of the metadata.

Source: the reference package lerobot 0.6.1 (src/lerobot/datasets/{utils,feature_utils,dataset_metadata}.py) and the
metadata that `datasets` 4.8 stores in its Parquet files.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000

SCALARS = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)


class DatasetFormatError(ValueError):
    """A data set on disk that is incomplete, truncated, of another version, or contradicts itself."""


class EpisodeError(ValueError):
    """An episode that does not fit the features of the data set it is written to."""


@dataclass(frozen=True)
class Feature:
    """One named quantity of every frame.

    Attributes:
        dtype: a numpy scalar type ("float32", "int64", "bool", ...), "string", "image" (PNG inside the Parquet file) or
            "video" (MP4).
        shape: of one frame; (1,) for a scalar. Images are (H, W, C) or (C, H, W).
        names: of the dimensions of a vector, or of the axes of an image, which tell where its channels are.
        info: anything JSON can hold.

    Raises:
        ValueError: on an unknown dtype, a shape without dimensions or with more than five, or an image shape without
            1 or 3 channels.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in (*SCALARS, "string", "image", "video"):
            raise ValueError(
                f"unknown dtype {self.dtype!r}; use one of {', '.join(SCALARS)}, string, image, video"
            )
        if not 1 <= len(self.shape) <= 5 or min(self.shape) < 1:
            raise ValueError(f"a shape has 1 to 5 positive dimensions, (1,) for a scalar; got {self.shape}")
        if self.visual and (len(self.shape) != 3 or self.channels not in (1, 3)):
            raise ValueError(f"an image is (H, W, C) or (C, H, W) with 1 or 3 channels, got {self.shape}")

    @property
    def visual(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def channels_first(self) -> bool:
        """Of a visual feature: as its names say, else as its shape does; (H, W, C) where both fit."""
        names = list(self.names) if isinstance(self.names, list | tuple) else []
        if names and names[0] in ("channels", "channel", "c"):
            return True
        if names and names[-1] in ("channels", "channel", "c"):
            return False
        return self.shape[-1] not in (1, 3)

    @property
    def channels(self) -> int:
        return self.shape[0] if self.channels_first else self.shape[-1]

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.shape[1], self.shape[2]) if self.channels_first else (self.shape[0], self.shape[1])

    def to_json(self) -> dict[str, Any]:
        names = list(self.names) if isinstance(self.names, tuple) else self.names
        entry = {"dtype": self.dtype, "shape": list(self.shape), "names": names}
        return {**entry, "info": dict(self.info)} if self.info else entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Feature":
        names = entry.get("names")
        return cls(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            names=tuple(names) if isinstance(names, list) else names,
            info=entry.get("info") or {},
        )


# Written by the writer beside the features of the user, in every data set.
BOOKKEEPING = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """meta/info.json.

    Attributes:
        fps: frames per second.
        features: by name, those of `BOOKKEEPING` included.
        robot_type: free text.
        total_episodes, total_frames, total_tasks: counts.
        data_files_size_in_mb, video_files_size_in_mb: sizes at which a new file is begun.
        data_path, video_path: templates; video_path is None without videos.
    """

    fps: float
    features: Mapping[str, Feature]
    robot_type: str | None = None
    total_episodes: int = 0
    total_frames: int = 0
    total_tasks: int = 0
    chunks_size: int = FILES_PER_CHUNK
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200
    data_path: str = DATA_PATH
    video_path: str | None = None

    def __post_init__(self) -> None:
        for name in ("fps", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def keys(self, *dtypes: str) -> tuple[str, ...]:
        """Names of the features of these dtypes."""
        return tuple(name for name, feature in self.features.items() if feature.dtype in dtypes)

    def to_json(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": self.total_tasks,
            "chunks_size": self.chunks_size,
            "data_files_size_in_mb": self.data_files_size_in_mb,
            "video_files_size_in_mb": self.video_files_size_in_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{self.total_episodes}"},
            "data_path": self.data_path,
            "video_path": self.video_path,
            "features": {name: feature.to_json() for name, feature in self.features.items()},
        }


def read_info(root: Path) -> DatasetInfo:
    """meta/info.json of the data set at `root`.

    Raises:
        FileNotFoundError: if there is none.
        DatasetFormatError: if it is no JSON, lacks entries, or is of another major version.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise FileNotFoundError(f"{root} is not a LeRobot data set: it has no {INFO_PATH}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = str(raw["codebase_version"])
        if not version.startswith("v3"):
            raise DatasetFormatError(
                f"{path} is of version {version}, not v3.0; convert it with LeRobot: "
                "python -m lerobot.scripts.convert_dataset_v21_to_v30"
            )
        known = {name for name in DatasetInfo.__dataclass_fields__ if name in raw and name != "features"}
        features = {name: Feature.from_json(entry) for name, entry in raw["features"].items()}
        return DatasetInfo(features=features, **{name: raw[name] for name in known})
    except DatasetFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetFormatError(f"{path} is damaged or lacks an entry: {error!r}") from error


def write_durably(path: Path, content: bytes) -> None:
    """`content` at `path`, whole or not at all, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_durably(path, json.dumps(content, indent=4, ensure_ascii=False).encode())


def read_table(path: Path, *, columns: list[str] | None = None) -> "pa.Table":
    """A whole Parquet file.

    Raises:
        DatasetFormatError: naming the file if it is missing, truncated or lacks a column.
    """
    try:
        # Read as one file: as part of a data set, "chunk-000" would be tried as a partition.
        return pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError as error:
        raise DatasetFormatError(f"{path} is missing; copy the data set again") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetFormatError(
            f"{path} is truncated or no Parquet file ({error}); a recording that was not closed or a copy that was cut"
        ) from error


def arrow_type(feature: Feature) -> "pa.DataType":
    """Type of the column of a feature in the data files (a video has none)."""
    if feature.dtype == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kind = pa.bool_() if feature.dtype == "bool" else pa.type_for_alias(feature.dtype)
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _huggingface_type(feature: Feature) -> dict[str, Any]:
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.dtype == "image":
        return {"_type": "Image"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}


def data_schema(features: Mapping[str, Feature]) -> "pa.Schema":
    """Schema of the data files, with the feature types that the `datasets` package looks for under `huggingface`."""
    stored = {name: feature for name, feature in features.items() if feature.dtype != "video"}
    types = {name: _huggingface_type(feature) for name, feature in stored.items()}
    return pa.schema(
        [(name, arrow_type(feature)) for name, feature in stored.items()],
        metadata={"huggingface": json.dumps({"info": {"features": types}})},
    )


def tasks_table(tasks: list[str]) -> "pa.Table":
    """meta/tasks.parquet: task_index, with the task itself as the index of the pandas frame it is read as."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    axis = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{**axis, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**column, "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)}
    )
    return pa.table({"task_index": np.arange(len(tasks)), "task": tasks}, schema=schema)


def read_tasks(root: Path) -> list[str]:
    """Tasks by index, whatever the column of the names is called."""
    path = root / TASKS_PATH
    table = read_table(path)
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(names) != 1:
        raise DatasetFormatError(f"{path} has columns {table.column_names}, expected task_index and the task")
    by_index = dict(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))
    if sorted(by_index) != list(range(len(by_index))):
        raise DatasetFormatError(f"{path}: task_index does not count 0 to {len(by_index) - 1}")
    return [by_index[i] for i in range(len(by_index))]
