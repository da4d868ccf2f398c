"""An exported policy acts as the one it was made of, whatever the arm."""

import json
from pathlib import Path

import pytest
import torch

from policies.imitation.build import Auxiliary, build_policy
from policies.imitation.export import export_policy, latency, load_exported
from policies.imitation.interface import Interface
from policies.imitation.policy import ImitationPolicy
from tests.policies.imitation.toys import ARMS, TINY, batch, interface, policy, statistics
from worldmodel.training.checkpoints import CheckpointError


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_acts_as_before(arm: str, tmp_path: Path) -> None:
    made = policy(arm).eval()
    export_policy(made, tmp_path, name=ARMS[arm][0], sizes=TINY)
    loaded = load_exported(tmp_path).policy
    seen = batch(arm, size=24).observation
    assert torch.equal(loaded.act(seen, noise()), made.act(seen, noise()))
    assert loaded.interface == made.interface
    assert not any("predictor" in name or "target" in name for name in loaded.state_dict())
    assert latency(loaded, repeats=2) > 0


def test_a_causal_decoder_acts_otherwise_than_the_same_weights_without_its_order() -> None:
    """What the file says of the order of actions matters: weights alone do not tell."""
    one, other = (
        build_policy("act", interface=interface(), sizes=TINY, statistics=statistics(), auxiliary=auxiliary).eval()
        for auxiliary in (Auxiliary(causal=True), None)
    )  # fmt: skip
    other.load_state_dict(one.state_dict())
    seen = batch().observation
    assert not torch.allclose(one.act(seen), other.act(seen))


def test_a_file_of_another_version_is_named(tmp_path: Path) -> None:
    made: ImitationPolicy = policy("act").eval()
    export_policy(made, tmp_path, name="act", sizes=TINY)
    told = json.loads((tmp_path / "policy.json").read_text())
    for key in ("causal", "interface"):
        (tmp_path / "policy.json").write_text(json.dumps({k: v for k, v in told.items() if k != key}))
        with pytest.raises(CheckpointError, match=rf"KeyError: '{key}'.*export the run again"):
            load_exported(tmp_path)
    assert Interface.from_json(told["interface"]) == made.interface
