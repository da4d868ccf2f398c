"""Settings are checked when built."""

from typing import Any

import pytest

from tests.worldmodel.training.toy import config


@pytest.mark.parametrize(
    "bad",
    [
        {"max_steps": 0},
        {"batch_size": 1.5},
        {"accumulate": True},
        {"eval_every": 0},
        {"checkpoint_every": -1},
        {"keep_checkpoints": 0},
        {"stop_after": 0},
        {"num_workers": -1},
        {"seed": -1},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"beta2": 1.0},
        {"precision": "fp16"},
        {"wandb": "on"},
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"trainer.{next(iter(bad))}"):
        config(**bad)


def test_the_batch_is_shared_out_evenly() -> None:
    assert config(batch_size=12).micro_batch(1) == 12
    assert config(batch_size=12, accumulate=3).micro_batch(2) == 2
    with pytest.raises(ValueError, match="make it a multiple of 8"):
        config(batch_size=12, accumulate=4).micro_batch(2)
