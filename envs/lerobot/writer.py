"""Writing a LeRobotDataset v3.0, one episode after another, without ever leaving it broken.

A Parquet file can be read only once it is closed, so an episode cannot be appended to one safely. `append` therefore
stages each episode in a folder of its own (`staging`); from then on it is kept. When enough are staged, `flush` writes
them as one data file (a row group per episode), one MP4 per camera and one file of meta/episodes. That last file is
what makes them part of the data set; stats.json and info.json follow from it. A writer that is opened after a crash
first finishes what was left. The end of the process loses nothing that was appended, that of the machine nothing that
was flushed.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.lerobot.columns import check_episode
from envs.lerobot.episodes import (
    EPISODES_FILES,
    EpisodeEntry,
    Place,
    VideoSpan,
    next_place,
    read_episodes,
    read_statistics,
)
from envs.lerobot.pixels import ENCODERS, join_videos, video_info
from envs.lerobot.schema import (
    BOOKKEEPING,
    EPISODES_PATH,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    DatasetInfo,
    EpisodeError,
    Feature,
    data_schema,
    read_info,
    read_table,
    read_tasks,
    tasks_table,
    write_json,
)
from envs.lerobot.staging import FOLDER, StagedEpisode, find_staged, stage
from envs.lerobot.statistics import merge_statistics

MEBIBYTE = 2**20


class LeRobotWriter:
    """Appends episodes to a data set, which is created if the folder is empty or absent.

    Use it in a `with` block, or call `close`. One writer at a time.

    Args:
        root: folder of the data set.
        features: by name, without those of `BOOKKEEPING`.
        fps: frames per second.
        robot_type: free text.
        codec: of the videos, "h264" or "libsvtav1" (AV1).
        data_files_size_in_mb, video_files_size_in_mb: size at which a new file is begun, in MiB.

    Raises:
        ValueError: if the folder holds a data set of other features or another rate, or files that are none; if a name
            holds "/" or is one of `BOOKKEEPING`; if a video has an odd height or width.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        features: Mapping[str, Feature],
        fps: float,
        robot_type: str | None = None,
        codec: str = "h264",
        data_files_size_in_mb: float = 100,
        video_files_size_in_mb: float = 200,
    ) -> None:
        _check_features(features, codec=codec)
        self.root, self.codec = Path(root), codec
        asked = DatasetInfo(
            fps=fps,
            features={**features, **BOOKKEEPING},
            robot_type=robot_type,
            data_files_size_in_mb=data_files_size_in_mb,
            video_files_size_in_mb=video_files_size_in_mb,
            video_path=VIDEO_PATH if any(f.dtype == "video" for f in features.values()) else None,
        )
        if (self.root / INFO_PATH).is_file():
            self.info = read_info(self.root)
            _check_continues(self.info, asked, root=self.root)
        else:
            _check_unused(self.root)
            self.info = asked
            write_json(self.root / INFO_PATH, asked.to_json())
        self._tasks: list[str] = []
        self._recover()

    @classmethod
    def reopen(cls, root: str | Path, *, codec: str = "h264") -> "LeRobotWriter":
        """Continue the data set at `root`; closing it at once completes a recording that was broken off."""
        info = read_info(Path(root))
        features = {name: f for name, f in info.features.items() if name not in BOOKKEEPING}
        return cls(root, features=features, fps=info.fps, codec=codec)

    @property
    def num_episodes(self) -> int:
        """Episodes that are kept however the process ends."""
        return len(self._committed) + len(self._staged)

    @property
    def num_frames(self) -> int:
        done = self._committed[-1].stop if self._committed else 0
        return done + sum(episode.length for episode in self._staged)

    def append(self, frames: Mapping[str, Any], *, task: str | Sequence[str]) -> int:
        """Add an episode; it is kept once this returns.

        Args:
            frames: [T, *shape] by feature.
            task: what is done, one text for the episode or one for each frame.

        Returns:
            The index of the episode.

        Raises:
            EpisodeError: if the frames do not fit the features (`check_episode`), or the tasks the frames.
        """
        arrays = check_episode(frames, self.info.features)
        length = len(next(iter(arrays.values())))
        texts = [task] * length if isinstance(task, str) else list(task)
        if len(texts) != length or not all(isinstance(text, str) and text for text in texts):
            raise EpisodeError(f"{length} frames need one task or {length}, none of them empty; got {task!r}")
        tasks = list(dict.fromkeys([*self._tasks, *texts]))
        index = self.num_episodes
        arrays |= {
            "timestamp": (np.arange(length) / self.info.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": np.arange(length) + self.num_frames,
            "task_index": np.array([tasks.index(text) for text in texts]),
        }
        staged = stage(self.root, index, arrays, tasks=tasks, info=self.info, codec=self.codec)
        self._tasks = tasks
        self._hold(staged)
        if self._bytes["data"] >= self.info.data_files_size_in_mb * MEBIBYTE or any(
            self._bytes[key] >= self.info.video_files_size_in_mb * MEBIBYTE for key in self.info.keys("video")
        ):
            self.flush()
        return index

    def flush(self) -> None:
        """Make the staged episodes part of the data set."""
        if not self._staged:
            return
        first, place = len(self._committed), next_place(self._committed, self.root, self.info)
        self._write(self.info.data_path, place, self._write_data)
        for key in self.info.keys("video"):
            template = str(self.info.video_path).replace("{video_key}", key)
            self._write(template, place, partial(self._write_video, key=key))
        self._write(TASKS_PATH, place, lambda path: pq.write_table(tasks_table(self._tasks), path))
        entries = self._entries(first, place)
        rows = [
            entry.to_row(statistics=episode.statistics, meta=place)
            for entry, episode in zip(entries, self._staged, strict=True)
        ]
        # This makes the episodes part of the data set.
        self._write(EPISODES_PATH, place, lambda path: pq.write_table(pa.Table.from_pylist(rows), path))
        folders = [episode.folder for episode in self._staged]
        self._committed += entries
        self._clear()
        self._write_summary()
        for folder in folders:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Flush, and remove the staging folder."""
        self.flush()
        shutil.rmtree(self.root / FOLDER, ignore_errors=True)

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> None:
        """Take the state from disk, and finish what a process that ended has left."""
        any_episodes = any(self.root.glob(EPISODES_FILES))
        self._committed = read_episodes(self.root, self.info) if any_episodes else []
        self._tasks = read_tasks(self.root) if any_episodes else []
        self._clear()
        if self._committed and self.info.total_episodes != len(self._committed):
            self._write_summary()
        for episode in find_staged(self.root, first=len(self._committed)):
            self._tasks = episode.tasks
            self._hold(episode)
        self.flush()

    def _clear(self) -> None:
        self._staged: list[StagedEpisode] = []
        self._bytes = dict.fromkeys(("data", *self.info.keys("video")), 0)

    def _hold(self, episode: StagedEpisode) -> None:
        self._staged.append(episode)
        self._bytes["data"] += episode.data.stat().st_size
        for key in self.info.keys("video"):
            self._bytes[key] += episode.video(key).stat().st_size

    def _entries(self, first: int, place: Place) -> list[EpisodeEntry]:
        start = self._committed[-1].stop if self._committed else 0
        entries: list[EpisodeEntry] = []
        begin = 0
        for i, episode in enumerate(self._staged):
            span = VideoSpan(place, begin / self.info.fps, (begin + episode.length) / self.info.fps)
            entry = EpisodeEntry(
                index=first + i,
                length=episode.length,
                start=start + begin,
                tasks=tuple(episode.done),
                place=place,
                videos=dict.fromkeys(self.info.keys("video"), span),
            )
            entries.append(entry)
            begin += episode.length
        return entries

    def _write(self, template: str, place: Place, write: Callable[[Path], object]) -> None:
        """A file written beside the data set, then moved to its place."""
        temporary, target = self.root / FOLDER / "file.tmp", self.root / place.path(template)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)

    def _write_data(self, path: Path) -> None:
        with pq.ParquetWriter(path, data_schema(self.info.features), compression="snappy") as writer:
            for episode in self._staged:
                writer.write_table(read_table(episode.data))

    def _write_video(self, path: Path, *, key: str) -> None:
        parts, lengths = [e.video(key) for e in self._staged], [e.length for e in self._staged]
        join_videos(parts, path, lengths=lengths, fps=self.info.fps)

    def _write_summary(self) -> None:
        """stats.json and info.json, from meta/episodes and the first videos."""
        features = dict(self.info.features)
        for key, span in self._committed[0].videos.items():
            path = self.root / span.place.path(str(self.info.video_path), video_key=key)
            features[key] = replace(features[key], info={**features[key].info, **video_info(path)})
        self.info = replace(
            self.info,
            features=features,
            total_episodes=len(self._committed),
            total_frames=self._committed[-1].stop,
            total_tasks=len(self._tasks),
        )
        statistics = merge_statistics(read_statistics(self.root))
        listed = {f: {s: value.tolist() for s, value in of.items()} for f, of in statistics.items()}
        write_json(self.root / STATS_PATH, listed)
        write_json(self.root / INFO_PATH, self.info.to_json())


def _check_features(features: Mapping[str, Feature], *, codec: str) -> None:
    if not features:
        raise ValueError("a data set needs at least one feature")
    if wrong := [name for name in features if "/" in name or name in BOOKKEEPING]:
        raise ValueError(
            f"feature names hold no '/', and {[*BOOKKEEPING]} are added by the writer; got {wrong}"
        )
    if codec not in ENCODERS:
        raise ValueError(f"unknown codec {codec!r}; use one of {', '.join(ENCODERS)}")
    for name, feature in features.items():
        if feature.dtype == "video" and any(size % 2 for size in feature.height_width):
            raise ValueError(
                f"video {name!r} needs an even height and width, got {feature.shape}; use dtype 'image'"
            )


def _check_continues(found: DatasetInfo, asked: DatasetInfo, *, root: Path) -> None:
    def essence(info: DatasetInfo) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (f.dtype, f.shape) for name, f in info.features.items()}

    if essence(found) != essence(asked) or found.fps != asked.fps:
        raise ValueError(
            f"{root} holds a data set of {found.fps} frames per second with {essence(found)}; it cannot be continued "
            f"with {asked.fps} and {essence(asked)}: give another folder"
        )


def _check_unused(root: Path) -> None:
    found = [root] if root.is_file() else root.rglob("*")
    if any(path.is_file() and path.suffix != ".tmp" for path in found):
        raise ValueError(f"{root} holds files but no LeRobot data set; give a new or an empty folder")
