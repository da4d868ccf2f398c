"""Single episodes on disk that are not yet part of a data set: each in a folder that gets its name when it is whole."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.lerobot.columns import to_column
from envs.lerobot.pixels import encode_video, to_pixels
from envs.lerobot.schema import DatasetInfo, data_schema
from envs.lerobot.statistics import episode_statistics

FOLDER = ".staged"
_DATA, _DESCRIPTION = "data.parquet", "episode.json"


@dataclass(frozen=True, kw_only=True)
class StagedEpisode:
    """An episode in a folder.

    Attributes:
        folder: of its files.
        length: frames.
        tasks: of all episodes so far and of this one, by index.
        done: the tasks of this one.
        statistics: as lists, by feature and name.
    """

    folder: Path
    length: int
    tasks: list[str]
    done: list[str]
    statistics: Mapping[str, Mapping[str, Any]]

    @property
    def data(self) -> Path:
        return self.folder / _DATA

    def video(self, key: str) -> Path:
        return self.folder / f"{key}.mp4"


def stage(
    root: Path,
    index: int,
    arrays: Mapping[str, np.ndarray],
    *,
    tasks: list[str],
    info: DatasetInfo,
    codec: str,
) -> StagedEpisode:
    """Write an episode with all its columns. It exists from the renaming of its folder on, or not at all."""
    final = root / FOLDER / f"{index:09d}"
    folder = final.with_suffix(".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema = data_schema(info.features)
    columns = [to_column(arrays[name], info.features[name]) for name in schema.names]
    pq.write_table(pa.table(columns, schema=schema), folder / _DATA, compression="snappy")
    for key in info.keys("video"):
        pixels = to_pixels(arrays[key], info.features[key])
        encode_video(folder / f"{key}.mp4", pixels, fps=info.fps, codec=codec)
    statistics = episode_statistics(arrays, info.features)
    description: dict[str, Any] = {
        "length": len(arrays["index"]),
        "tasks": tasks,
        "done": [tasks[i] for i in dict.fromkeys(arrays["task_index"].tolist())],
        "statistics": {f: {s: value.tolist() for s, value in of.items()} for f, of in statistics.items()},
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    folder.rename(final)
    return StagedEpisode(folder=final, **description)


def find_staged(root: Path, *, first: int) -> list[StagedEpisode]:
    """The staged episodes from number `first` on, in order; half-written and older ones are removed."""
    found = []
    for path in sorted((root / FOLDER).glob("*")):
        if not path.is_dir():
            path.unlink()
        elif path.suffix == ".tmp" or int(path.name) < first:
            shutil.rmtree(path)
        else:
            found.append(
                StagedEpisode(folder=path, **json.loads((path / _DESCRIPTION).read_text(encoding="utf-8")))
            )
    return found
