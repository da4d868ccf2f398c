"""What can go wrong with LiDAR data, said so that the reader knows which file it is and what to do."""

import re
from pathlib import Path

_ONE_LINE = re.compile(r"^(?:[\w.]*FrameError: )?(?P<path>.+?): (?P<problem>.+?)\. (?P<remedy>.+)$")


class FrameError(ValueError):
    """One frame cannot be used. The message is "PATH: problem. Remedy."

    A DataLoader re-raises a worker's exception as `type(error)(traceback_text)`; the constructor therefore
    also accepts that text alone and finds its own last line in it, so that the error arrives in the main
    process with its type, its fields and a readable message.

    Args:
        path: the file.
        problem: what is wrong, without a full stop.
        remedy: what to do about it, a full sentence.
    """

    def __init__(self, path: str | Path, problem: str | None = None, remedy: str = "") -> None:
        if problem is None:
            path, problem, remedy = _from_traceback(str(path))
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {problem}. {remedy}" if remedy else f"{path}: {problem}")

    def __reduce__(self) -> tuple[type["FrameError"], tuple[str, str, str]]:
        return type(self), (str(self.path), self.problem, self.remedy)


def _from_traceback(text: str) -> tuple[str, str, str]:
    last = text.strip().splitlines()[-1] if text.strip() else "unknown frame"
    found = _ONE_LINE.match(last)
    if found is None:
        return "unknown frame", last, ""
    return found["path"], found["problem"], found["remedy"]


def reason(error: BaseException) -> str:
    """Another exception's text as part of a FrameError's problem: one line, no full stops."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".").replace(". ", "; ")


class DatasetError(ValueError):
    """A data set cannot be used as a whole: wrong root, wrong layout, no frames, or too many bad frames."""
