"""The random numbers of planners: functions of (seed of an environment, step), white or coloured in time."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch


def generators(seeds: Sequence[int], step: int, device: torch.device) -> list[torch.Generator]:
    """One generator per environment for all draws of one decision, iteration after iteration."""
    states = [np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] for seed in seeds]
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in states]


def draw_normal(out: torch.Tensor, sources: Sequence[torch.Generator]) -> torch.Tensor:
    """Fill out [B, ...] with N(0, 1), each row from its own generator."""
    for row, source in zip(out, sources, strict=True):
        row.normal_(generator=source)
    return out


@lru_cache(maxsize=16)
def colouring(steps: int, beta: float) -> torch.Tensor:
    """Matrix [T, T] that turns T white normal numbers into noise with power 1 / f^beta and unit variance, float64.

    The inverse real Fourier transform of independent normal coefficients scaled by f^(-beta / 2), written as a matrix;
    the constant part gets the scale of the lowest frequency (Timmer and Koenig 1995, as in iCEM, arXiv 2008.06389).
    beta 0 is white noise, 2 a (periodic) random walk.
    """
    time = np.arange(steps)
    columns = []
    for k in range(steps // 2 + 1):
        scale = max(k, 1) ** (-beta / 2)
        angle = 2 * np.pi * k * time / steps
        if k == 0 or 2 * k == steps:
            columns.append(scale * np.cos(angle))
        else:
            columns += [2**0.5 * scale * np.cos(angle), 2**0.5 * scale * np.sin(angle)]
    matrix = np.stack(columns, axis=1)
    matrix /= np.sqrt((matrix**2).sum(1, keepdims=True))
    return torch.from_numpy(matrix)


def coloured(white: torch.Tensor, *, block: int, beta: float) -> torch.Tensor:
    """White noise [B, K, H, block * A] to noise that is coloured along the H * block environment steps."""
    if not beta:
        return white
    steps = white.unflatten(-1, (block, -1)).flatten(2, 3)
    return (colouring(steps.shape[2], beta).to(white) @ steps).view_as(white)
