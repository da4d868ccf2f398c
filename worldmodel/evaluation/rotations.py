"""Rotations as regression targets. Quaternions are scalar-last (x, y, z, w), as in SciPy; q and -q are one rotation."""

import math

import torch

from worldmodel.distributed import at_least_fp32


def canonical(quaternions: torch.Tensor) -> torch.Tensor:
    """Of q and -q the one with w >= 0, so that one rotation is one target: [..., 4].

    With w = 0, of half turns, the first component that is not 0 is positive.
    """
    _check(quaternions)
    x, y, z, w = quaternions.unbind(-1)
    deciding = torch.where(w != 0, w, torch.where(x != 0, x, torch.where(y != 0, y, z)))
    return torch.where(deciding.unsqueeze(-1) < 0, -quaternions, quaternions)


def relative(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """inv(first) * second of unit quaternions [..., 4], canonical: the action between two poses."""
    _check(first)
    _check(second)
    px, py, pz, pw = first.unbind(-1)
    qx, qy, qz, qw = second.unbind(-1)
    product = torch.stack(
        [
            pw * qx - px * qw - py * qz + pz * qy,
            pw * qy - py * qw - pz * qx + px * qz,
            pw * qz - pz * qw - px * qy + py * qx,
            pw * qw + px * qx + py * qy + pz * qz,
        ],
        dim=-1,
    )
    return canonical(product)


def rotation_vector(quaternions: torch.Tensor) -> torch.Tensor:
    """Axis times angle in radians [..., 3] of unit quaternions [..., 4]; the angle lies in [0, pi].

    Unlike w, which hardly varies between small rotations, all three components vary alike.
    """
    q = canonical(at_least_fp32(quaternions))
    sine = q[..., :3].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, q[..., 3:])
    scale = torch.where(sine > 1e-8, angle / sine.clamp_min(1e-8), torch.full_like(sine, 2.0))
    return q[..., :3] * scale


def geodesic_degrees(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angle [...] in degrees, 0 to 180, of the rotation between two quaternions [..., 4] of any non-zero norm.

    The arc tangent of chords keeps small angles that the arc cosine of a dot product rounds away.

    Raises:
        ValueError: if a quaternion is zero or not finite: it is no rotation.
    """
    _check(first)
    _check(second)
    p, q = at_least_fp32(first), at_least_fp32(second)
    norms = torch.stack([p.norm(dim=-1), q.norm(dim=-1)])
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise ValueError("a quaternion is zero, NaN or infinite: it is no rotation")
    p, q = p / norms[0].unsqueeze(-1), q / norms[1].unsqueeze(-1)
    near, far = (p - q).norm(dim=-1), (p + q).norm(dim=-1)
    return torch.rad2deg(4 * torch.atan2(torch.minimum(near, far), torch.maximum(near, far))).clamp_max(
        math.degrees(math.pi)
    )


def _check(quaternions: torch.Tensor) -> None:
    if quaternions.shape[-1] != 4:
        raise ValueError(f"quaternions are [..., 4], got {tuple(quaternions.shape)}")
