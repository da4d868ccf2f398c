"""LeRobot data sets (LeRobotDataset v3.0) read and written with pyarrow and av, without the lerobot package.

Needs `pip install 'robot-worldmodel[lerobot]'`.
"""

try:
    import pyarrow  # noqa: F401
except ImportError as error:
    raise ImportError(
        "LeRobot data sets need pyarrow, av and pillow: pip install 'robot-worldmodel[lerobot]'"
    ) from error

from envs.lerobot.reader import LeRobotDataset
from envs.lerobot.recording import write_episodes
from envs.lerobot.schema import DatasetFormatError, DatasetInfo, EpisodeError, Feature
from envs.lerobot.source import LeRobotEpisodes
from envs.lerobot.writer import LeRobotWriter

__all__ = [
    "DatasetFormatError",
    "DatasetInfo",
    "EpisodeError",
    "Feature",
    "LeRobotDataset",
    "LeRobotEpisodes",
    "LeRobotWriter",
    "write_episodes",
]
