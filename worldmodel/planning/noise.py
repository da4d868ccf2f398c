"""The random numbers of planners: functions of (seed of an environment, step), white or coloured in time."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch


def generators(seeds: Sequence[int], step: int, device: torch.device) -> list[torch.Generator]:
    """One generator per environment for all draws of one decision, iteration after iteration."""
    return [torch.Generator(device).manual_seed(_mixed(_mixed(seed) + step) >> 1) for seed in seeds]


def _mixed(value: int) -> int:
    """A bijection of 64-bit numbers that leaves no trace of their order (splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


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
    return (colouring(steps.shape[2], beta).to(white) @ steps).reshape(white.shape)


class CandidateNoise:
    """Noise [B, K_i, H, block * A] of every iteration i of a decision, the candidates being K_i many.

    Several iterations are drawn at once, as many as hold `LIMIT` numbers per environment: which ones does not depend
    on B, so neither do the numbers. What was handed out is overwritten by the next draw.

    Args:
        sources: one generator per environment.
        counts: K_i of each iteration.
        like: [B, H, block * A], for shape, type and device.
        block, beta: see `coloured`.
        first_is_zero: the first candidate of each iteration gets no noise: it is the mean.
    """

    LIMIT = 2**13

    def __init__(
        self,
        sources: Sequence[torch.Generator],
        *,
        counts: Sequence[int],
        like: torch.Tensor,
        block: int,
        beta: float,
        first_is_zero: bool,
    ) -> None:
        self._sources, self._counts, self._like = sources, counts, like
        self._block, self._beta, self._first_is_zero = block, beta, first_is_zero
        self._drawn: list[torch.Tensor] = []
        self._next = 0
        self._white = like.new_empty(0)

    def __call__(self) -> torch.Tensor:
        """The noise of the next iteration."""
        if not self._drawn:
            self._drawn = self._draw()[::-1]
        return self._drawn.pop()

    def _draw(self) -> list[torch.Tensor]:
        batch, horizon, dim = self._like.shape
        each, counts = horizon * dim, [self._counts[self._next]]
        for count in self._counts[self._next + 1 :]:
            if (sum(counts) + count) * each > self.LIMIT:
                break
            counts.append(count)
        self._next += len(counts)
        if self._white.shape != (
            batch,
            sum(counts),
            horizon,
            dim,
        ):  # fresh memory costs more than the numbers
            self._white = self._like.new_empty(batch, sum(counts), horizon, dim)
        draw_normal(self._white, self._sources)
        noise = coloured(self._white, block=self._block, beta=self._beta)
        parts = list(noise.split(counts, dim=1))
        if self._first_is_zero:
            for part in parts:
                part[:, 0] = 0
        return parts
