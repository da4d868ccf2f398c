import pickle
import traceback

import pytest

from lidar.datasets.errors import FrameError, reason

ERROR = FrameError("/data/a b/000001.bin", "12 bytes are missing", "Fetch it again. Or skip it.")


def test_the_message_names_file_problem_and_remedy() -> None:
    assert str(ERROR) == "/data/a b/000001.bin: 12 bytes are missing. Fetch it again. Or skip it."


def _fields(error: FrameError) -> tuple[str, str, str, str]:
    return str(error.path), error.problem, error.remedy, str(error)


def test_pickling_keeps_every_field() -> None:
    assert _fields(pickle.loads(pickle.dumps(ERROR))) == _fields(ERROR)


def test_it_is_rebuilt_from_a_workers_traceback() -> None:
    # What torch's ExceptionWrapper does: type(error)("Caught ... Original Traceback ...").
    try:
        raise ERROR
    except FrameError:
        text = "Caught FrameError in DataLoader worker process 0.\nOriginal " + traceback.format_exc()
    assert _fields(FrameError(text)) == _fields(ERROR)


@pytest.mark.parametrize("text", ["", "something else"])
def test_other_text_is_kept(text: str) -> None:
    assert text in str(FrameError(text))


def test_a_reason_is_one_clause() -> None:
    assert reason(ValueError("first. second.\nthird")) == "first; second"
    assert reason(EOFError()) == "EOFError"
