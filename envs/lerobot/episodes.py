"""meta/episodes: where each episode lies, what is done in it, and its statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.lerobot.schema import DatasetFormatError, DatasetInfo, read_table
from envs.lerobot.statistics import Statistics

EPISODES_FILES = "meta/episodes/*/*.parquet"


@dataclass(frozen=True, order=True)
class Place:
    """Number of a file within its chunk (folder)."""

    chunk: int = 0
    file: int = 0

    def after(self, *, files_per_chunk: int) -> "Place":
        return (
            Place(self.chunk, self.file + 1) if self.file + 1 < files_per_chunk else Place(self.chunk + 1, 0)
        )

    def path(self, template: str, **names: str) -> str:
        return template.format(chunk_index=self.chunk, file_index=self.file, **names)


@dataclass(frozen=True)
class VideoSpan:
    """An episode within a video file, in seconds."""

    place: Place
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """A row of meta/episodes.

    Attributes:
        index: of the episode.
        length: frames.
        start: index of its first frame among the frames of the data set.
        tasks: all that are done in it.
        place: of its data file.
        videos: by video feature.
    """

    index: int
    length: int
    start: int
    tasks: tuple[str, ...]
    place: Place
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def last_place(self) -> Place:
        """The highest number of a file that holds part of it."""
        return max(self.place, *(span.place for span in self.videos.values()), self.place)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, video_keys: Sequence[str]) -> "EpisodeEntry":
        def span(key: str) -> VideoSpan:
            chunk, file, start, stop = (
                row[f"videos/{key}/{name}"]
                for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            )
            return VideoSpan(Place(int(chunk), int(file)), float(start), float(stop))

        start = int(row["dataset_from_index"])
        return cls(
            index=int(row["episode_index"]),
            length=int(row["dataset_to_index"]) - start,
            start=start,
            tasks=tuple(row.get("tasks") or ()),
            place=Place(int(row["data/chunk_index"]), int(row["data/file_index"])),
            videos={key: span(key) for key in video_keys},
        )

    def to_row(self, *, statistics: Mapping[str, Mapping[str, Any]], meta: Place) -> dict[str, Any]:
        """Args: statistics as lists, by feature and name; meta, the file the row is written to."""
        row: dict[str, Any] = {
            "episode_index": self.index,
            "tasks": list(self.tasks),
            "length": self.length,
            "data/chunk_index": self.place.chunk,
            "data/file_index": self.place.file,
            "dataset_from_index": self.start,
            "dataset_to_index": self.stop,
        }
        for key, span in self.videos.items():
            row |= {
                f"videos/{key}/chunk_index": span.place.chunk,
                f"videos/{key}/file_index": span.place.file,
                f"videos/{key}/from_timestamp": span.start,
                f"videos/{key}/to_timestamp": span.stop,
            }
        row |= {f"stats/{name}/{s}": value for name, of in statistics.items() for s, value in of.items()}
        return {**row, "meta/episodes/chunk_index": meta.chunk, "meta/episodes/file_index": meta.file}


def _rows(root: Path, *, statistics: bool) -> list[dict[str, Any]]:
    """Rows of all files in the order of the episodes, with their statistics only or without."""
    rows: list[dict[str, Any]] = []
    for path in sorted(root.glob(EPISODES_FILES)):
        try:
            names = pq.ParquetFile(path).schema_arrow.names
        except (pa.ArrowException, OSError):
            names = None  # read_table says what is wrong with the file.
        wanted = names and [n for n in names if n.startswith("stats/") == statistics or n == "episode_index"]
        rows += read_table(path, columns=wanted).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def read_episodes(root: Path, info: DatasetInfo) -> list[EpisodeEntry]:
    """All episodes, by index.

    Raises:
        DatasetFormatError: if there are none, one is missing or twice there, or their frames leave gaps.
    """
    try:
        entries = [
            EpisodeEntry.from_row(row, video_keys=info.keys("video")) for row in _rows(root, statistics=False)
        ]
    except (KeyError, TypeError) as error:
        raise DatasetFormatError(f"{root}: meta/episodes lacks a column or a value: {error!r}") from error
    if not entries:
        raise DatasetFormatError(
            f"{root} has no episodes; if a recording was broken off, LeRobotWriter.reopen(root).close() recovers it"
        )
    if [entry.index for entry in entries] != list(range(len(entries))):
        raise DatasetFormatError(
            f"{root}: meta/episodes does not hold the episodes 0 to {len(entries) - 1} once each"
        )
    for before, entry in zip([None, *entries], entries, strict=False):
        if entry.length < 1 or entry.start != (before.stop if before else 0):
            raise DatasetFormatError(
                f"{root}: episode {entry.index} has frames {entry.start} to {entry.stop}"
            )
    return entries


def read_statistics(root: Path) -> list[Statistics]:
    """Statistics of each episode.

    Raises:
        DatasetFormatError: if an episode has none.
    """
    found = []
    for row in _rows(root, statistics=True):
        statistics: Statistics = {}
        for column, value in row.items():
            if column.startswith("stats/") and value is not None:
                feature, name = column.removeprefix("stats/").rsplit("/", 1)
                statistics.setdefault(feature, {})[name] = np.asarray(value)
        if not statistics:
            raise DatasetFormatError(
                f"{root}: episode {row['episode_index']} has no statistics in meta/episodes"
            )
        found.append(statistics)
    return found


def next_place(entries: Sequence[EpisodeEntry], root: Path, info: DatasetInfo) -> Place:
    """Of a file of any kind that none of the episodes lies in."""
    if not entries:
        return Place()
    listed = [_place_of(path) for path in root.glob(EPISODES_FILES)]
    return max([*listed, *(entry.last_place for entry in entries)]).after(files_per_chunk=info.chunks_size)


def _place_of(path: Path) -> Place:
    return Place(int(path.parent.name.removeprefix("chunk-")), int(path.stem.removeprefix("file-")))
