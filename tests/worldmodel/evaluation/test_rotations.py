"""Quaternions against SciPy; q and -q are one rotation everywhere."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldmodel.evaluation.rotations import canonical, geodesic_degrees, relative, rotation_vector


def rotations(count: int, seed: int) -> Rotation:
    return Rotation.random(count, random_state=seed)


def tensor(rotation: Rotation) -> torch.Tensor:
    return torch.from_numpy(rotation.as_quat())


def test_both_signs_give_the_same_target() -> None:
    q = tensor(rotations(50, 0))
    assert torch.equal(canonical(q), canonical(-q))
    assert bool((canonical(q)[:, 3] >= 0).all())
    assert torch.equal(relative(q[:25], q[25:]), relative(-q[:25], q[25:]))


def test_half_turns_have_one_sign() -> None:
    half = torch.tensor([[0.0, 0.6, -0.8, 0.0], [0.0, -0.6, 0.8, 0.0], [0.0, 0.0, -1.0, 0.0]])
    expected = torch.tensor([[0.0, 0.6, -0.8, 0.0], [0.0, 0.6, -0.8, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert torch.equal(canonical(half), expected)
    assert torch.equal(canonical(-half), expected)


def test_relative_is_inverse_times_second() -> None:
    a, b = rotations(40, 1), rotations(40, 2)
    expected = torch.from_numpy((a.inv() * b).as_quat(canonical=True))
    torch.testing.assert_close(relative(tensor(a), tensor(b)), expected)


def test_rotation_vector_against_scipy() -> None:
    r = rotations(40, 3)
    vectors = torch.from_numpy(r.as_rotvec())
    torch.testing.assert_close(rotation_vector(tensor(r)), vectors)
    torch.testing.assert_close(rotation_vector(-tensor(r)), vectors)
    assert torch.equal(rotation_vector(torch.tensor([0.0, 0.0, 0.0, 1.0])), torch.zeros(3))
    tiny = Rotation.from_rotvec([1e-10, 0, 0])
    torch.testing.assert_close(rotation_vector(tensor(tiny))[0].item(), 1e-10, rtol=1e-6, atol=0)


def test_geodesic_angle_against_scipy() -> None:
    a, b = rotations(40, 4), rotations(40, 5)
    expected = torch.from_numpy(np.degrees((a.inv() * b).magnitude()))
    for sign in (1, -1):
        for scale in (1.0, 7.0):
            found = geodesic_degrees(tensor(a) * sign * scale, tensor(b))
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 90.0, 180.0])
def test_geodesic_angle_of_small_and_large_turns_in_fp32(degrees: float) -> None:
    q = tensor(Rotation.from_rotvec([0, 0, np.radians(degrees)])).float()
    found = float(geodesic_degrees(q, torch.tensor([0.0, 0.0, 0.0, 1.0])))
    assert found == pytest.approx(degrees, rel=1e-4, abs=1e-6)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., 4\]"):
        canonical(torch.zeros(3))
    with pytest.raises(ValueError, match="no rotation"):
        geodesic_degrees(torch.zeros(4), torch.ones(4))
    with pytest.raises(ValueError, match="no rotation"):
        geodesic_degrees(torch.full((4,), torch.nan), torch.ones(4))
