"""scripts/record_demonstrations.py with the toy suite. Worker processes import the main module, and so find it too."""

import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[3]),
    str(Path(__file__).resolve().parents[3] / "scripts"),
]

import record_demonstrations  # noqa: E402

from envs.lerobot import LeRobotWriter  # noqa: E402
from tests.envs.manipulation import toy  # noqa: E402, F401 - registers the suite

if __name__ == "__main__":
    # What a shell starts in the background, tests too, is born with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "--slow" in sys.argv:  # time to be killed in
        sys.argv.remove("--slow")
        append = LeRobotWriter.append

        def slow_append(self: LeRobotWriter, *args: object, **kwargs: object) -> int:
            time.sleep(0.2)
            return append(self, *args, **kwargs)  # type: ignore[arg-type]

        LeRobotWriter.append = slow_append  # type: ignore[method-assign, assignment]
    record_demonstrations.main()
