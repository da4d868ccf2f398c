"""Statistics of the features: per episode, and of a data set from those of its episodes."""

from collections.abc import Mapping, Sequence

import numpy as np

from envs.lerobot.pixels import to_pixels
from envs.lerobot.schema import Feature

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, dict[str, np.ndarray]]


def feature_statistics(values: np.ndarray, feature: Feature) -> dict[str, np.ndarray]:
    """min, max, mean, std, quantiles [*shape] and count [1] over time; of images per channel, [C, 1, 1] in 0..1."""
    if feature.visual:
        return _image_statistics(to_pixels(values, feature))
    x = values.reshape(len(values), *feature.shape).astype(np.float64)
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    return {
        "min": x.min(0),
        "max": x.max(0),
        "mean": x.mean(0),
        "std": x.std(0),
        "count": np.array([len(x)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _image_statistics(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """From the histogram of each channel: exact, in the memory of the images."""
    channels = pixels.shape[-1]
    histogram = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(channels)])
    level, total = np.arange(256) / 255, histogram[0].sum()
    mean = histogram @ level / total
    variance = (histogram * (level - mean[:, None]) ** 2).sum(1) / total
    below = histogram.cumsum(1)

    def at_rank(share: float) -> np.ndarray:
        return level[(below >= max(1, np.ceil(share * total))).argmax(1)]

    found = {
        "min": at_rank(0),
        "max": at_rank(1),
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: at_rank(q) for name, q in QUANTILES.items()},
    }
    return {
        **{name: value.reshape(channels, 1, 1) for name, value in found.items()},
        "count": np.array([len(pixels)]),
    }


def episode_statistics(frames: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> Statistics:
    """Of every feature but strings."""
    return {
        name: feature_statistics(frames[name], feature)
        for name, feature in features.items()
        if feature.dtype != "string"
    }


def merge_statistics(parts: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> Statistics:
    """Of all frames, from parts of them. Exact but for the quantiles, which are the means of those of the parts."""
    return {name: _merge([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _merge(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    x = {name: np.stack([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    count = x.pop("count")
    weight = (count[:, 0] / count.sum()).reshape(-1, *[1] * (x["mean"].ndim - 1))
    mean = (weight * x["mean"]).sum(0)
    return {
        "min": x["min"].min(0),
        "max": x["max"].max(0),
        "mean": mean,
        "std": np.sqrt((weight * (x["std"] ** 2 + (x["mean"] - mean) ** 2)).sum(0)),
        "count": count.sum(0),
        **{name: (weight * x[name]).sum(0) for name in QUANTILES if name in x},
    }
