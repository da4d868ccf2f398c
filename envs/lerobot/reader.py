"""Reading a LeRobotDataset v3.0, from this package or any other."""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.lerobot.columns import from_column
from envs.lerobot.episodes import EpisodeEntry, Place, read_episodes
from envs.lerobot.pixels import decode_video, from_pixels
from envs.lerobot.schema import STATS_PATH, DatasetFormatError, DatasetInfo, Feature, read_info, read_tasks
from envs.lerobot.statistics import Statistics

ROW_GROUPS_KEPT = 4


class LeRobotDataset:
    """Episodes on disk, read column by column.

    Metadata are read at once, frames when they are asked for: only the row groups and the video frames that hold them.
    `load` keeps decoded columns in memory. May be pickled and forked.

    Args:
        root: folder of the data set, the one that holds meta/info.json.

    Attributes:
        info: fps, features and counts.
        tasks: texts by task_index.
        episodes: where each episode lies, its length and tasks.

    Raises:
        FileNotFoundError: if `root` is no data set.
        DatasetFormatError: if its metadata are damaged, of another version, or contradict each other.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.info: DatasetInfo = read_info(self.root)
        self.episodes: list[EpisodeEntry] = read_episodes(self.root, self.info)
        self.tasks: list[str] = read_tasks(self.root)
        self._file_starts: dict[Place, int] = {}
        for entry in self.episodes:
            self._file_starts.setdefault(entry.place, entry.start)
        self._loaded: dict[str, np.ndarray] = {}
        self._clear()

    def _clear(self) -> None:
        self._files: dict[Place, _File] = {}
        self._groups: OrderedDict[tuple[Place, int, str], pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_files", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._clear()

    def __len__(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        return self.episodes[-1].stop

    @property
    def features(self) -> dict[str, Feature]:
        return dict(self.info.features)

    @property
    def stats(self) -> Statistics:
        """Statistics of all frames by feature and name (meta/stats.json); empty if the data set has none.

        Raises:
            DatasetFormatError: if the file is no JSON.
        """
        path = self.root / STATS_PATH
        if not path.is_file():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {f: {s: np.asarray(value) for s, value in of.items()} for f, of in raw.items()}
        except (ValueError, AttributeError) as error:
            raise DatasetFormatError(f"{path} is damaged: {error}") from error

    def feature(self, key: str) -> Feature:
        """The feature of that name.

        Raises:
            KeyError: naming the features there are.
        """
        if key not in self.info.features:
            raise KeyError(f"{self.root} has no feature {key!r}; it has {', '.join(self.info.features)}")
        return self.info.features[key]

    def frames(self, key: str, *, episode: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop` of one feature of one episode, [T, *shape]; a scalar feature as [T].

        Images and videos are uint8 in the layout of the feature.

        Raises:
            KeyError: on an unknown feature.
            IndexError: on an unknown episode, or frames outside it.
            DatasetFormatError: if the file they lie in is missing, truncated, or holds something else.
        """
        feature = self.feature(key)
        if not 0 <= episode < len(self):
            raise IndexError(f"no episode {episode}: {self.root} has {len(self)}")
        entry = self.episodes[episode]
        stop = entry.length if stop is None else stop
        if not 0 <= start < stop <= entry.length:
            raise IndexError(f"episode {episode} has {entry.length} frames, not {start} to {stop}")
        if key in self._loaded:
            return self._loaded[key][entry.start + start : entry.start + stop]
        if feature.dtype == "video":
            return self._video(key, entry, start, stop)
        return from_column(self._column(key, entry, start, stop), feature, name=key)

    def load(self, keys: Iterable[str]) -> None:
        """Decode these features of all episodes and keep them in memory; `frames` then returns views of them."""
        for key in keys:
            if key in self._loaded:
                continue
            first = self.frames(key, episode=0)
            whole = np.empty((self.num_frames, *first.shape[1:]), first.dtype)
            for entry in self.episodes:
                whole[entry.start : entry.stop] = (
                    self.frames(key, episode=entry.index) if entry.index else first
                )
            whole.flags.writeable = False
            self._loaded[key] = whole

    def _video(self, key: str, entry: EpisodeEntry, start: int, stop: int) -> np.ndarray:
        feature, span = self.info.features[key], entry.videos[key]
        if not self.info.video_path:
            raise DatasetFormatError(f"{self.root} has the video feature {key!r} but no video_path")
        pixels = decode_video(
            self.root / span.place.path(self.info.video_path, video_key=key),
            start=span.start + start / self.info.fps,
            count=stop - start,
            fps=self.info.fps,
            channels=feature.channels,
        )
        if pixels.shape[1:3] != feature.height_width:
            raise DatasetFormatError(
                f"video {key!r} says {feature.height_width} pixels, found {pixels.shape[1:3]}"
            )
        return from_pixels(pixels, feature)

    def _column(self, key: str, entry: EpisodeEntry, start: int, stop: int) -> "pa.ChunkedArray":
        """Rows of an episode from its data file, checked to be of that episode."""
        first = entry.start - self._file_starts[entry.place]
        index = self._rows("episode_index", entry.place, first + start, first + stop)
        if len(index) != stop - start or (index.to_numpy() != entry.index).any():
            raise DatasetFormatError(
                f"{self._path(entry.place)} does not hold frames {start} to {stop} of episode {entry.index} where "
                "meta/episodes says: the copy is not complete, or of different recordings"
            )
        return self._rows(key, entry.place, first + start, first + stop)

    def _path(self, place: Place) -> Path:
        return self.root / place.path(self.info.data_path)

    def _rows(self, key: str, place: Place, start: int, stop: int) -> "pa.ChunkedArray":
        path = self._path(place)
        try:
            if place not in self._files:
                self._files[place] = _File(path)
            file = self._files[place]
            if key not in file.parquet.schema_arrow.names:
                raise DatasetFormatError(f"{path} has no column {key!r}, though meta/info.json names it")
            parts = []
            for group, begin, end in file.groups(start, stop):
                column = self._group(file, place, group, key)
                parts += column.slice(max(0, start - begin), min(stop, end) - max(start, begin)).chunks
            return pa.chunked_array(parts, file.parquet.schema_arrow.field(key).type)
        except FileNotFoundError as error:
            raise DatasetFormatError(f"{path} is missing; copy the data set again") from error
        except (pa.ArrowException, OSError) as error:
            raise DatasetFormatError(
                f"{path} is truncated or no Parquet file ({error}); a recording that was not closed or a copy that "
                "was cut"
            ) from error

    def _group(self, file: "_File", place: Place, group: int, key: str) -> "pa.ChunkedArray":
        """A column of a row group. The last few are kept: other writers put many episodes into one."""
        name = (place, group, key)
        if name not in self._groups:
            self._groups[name] = file.parquet.read_row_group(group, columns=[key], use_threads=False).column(
                key
            )
            while len(self._groups) > ROW_GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(name)
        return self._groups[name]


class _File:
    """An open data file and the rows of its row groups."""

    def __init__(self, path: Path) -> None:
        self.parquet = pq.ParquetFile(path, memory_map=True)
        metadata = self.parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.edges = np.cumsum([0, *sizes])

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Row groups that hold rows from `start` to `stop`, each with its own first and last row."""
        first = int(np.searchsorted(self.edges, start, side="right")) - 1
        for group in range(first, len(self.edges) - 1):
            if self.edges[group] >= stop:
                return
            yield group, int(self.edges[group]), int(self.edges[group + 1])
