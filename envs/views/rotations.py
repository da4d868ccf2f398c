"""Views at known rotations, and the rotation between two of them as an action.

Quaternions are scalar-last (x, y, z, w), as in SciPy, and sign-canonical: w >= 0, so that q and -q, which are the same
rotation, are one regression target.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from envs.episodes import ActionSpec, Episode

# inv(p) * q = sum_i p_i (M_i q): one matrix for each of x, y, z, w of p.
_INVERSE_TIMES = np.array(
    [
        [[0, 0, 0, -1], [0, 0, 1, 0], [0, -1, 0, 0], [1, 0, 0, 0]],
        [[0, 0, -1, 0], [0, 0, 0, -1], [1, 0, 0, 0], [0, 1, 0, 0]],
        [[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
    np.float64,
)
QUATERNION = ("q_x", "q_y", "q_z", "q_w")


def quaternions(rotation: Rotation) -> np.ndarray:
    """Sign-canonical quaternions [..., 4] float32 of a rotation or a stack of them."""
    return rotation.as_quat(canonical=True).astype(np.float32)


def relative_quaternions(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """inv(R_first) * R_second for unit quaternions [..., 4]: sign-canonical [..., 4] float32 (arXiv 2505.03176, A.2).

    R maps object coordinates to camera coordinates, so this is the turn of the object about its own axes. It is drawn
    for every training sample: as one product it takes a tenth of the time of SciPy's checks.
    """
    turn = np.einsum("...i,ikj,...j->...k", first.astype(np.float64), _INVERSE_TIMES, second)
    return np.where(turn[..., 3:] < 0, -turn, turn).astype(np.float32)


def distinct_views(available: int, *, steps: int, item: int, generator: np.random.Generator) -> np.ndarray:
    """`steps` different view numbers in random order [steps].

    Raises:
        ValueError: if there are fewer views than steps, or no step is asked for.
    """
    if not 1 <= steps <= available:
        raise ValueError(
            f"item {item} has {available} views: ask for 1 to {available} steps, not {steps}, or render more views"
        )
    return generator.permutation(available)[:steps]


class PosedViews:
    """Views of objects at known rotations, rendered beforehand: an EpisodeSource.

    Consecutive views of an episode are random distinct views of one object, not a smooth motion. The action between
    two is `relative_quaternions` of them, followed by the differences of the latents named in `acted` ("rotation +
    colour").

    Args:
        views: [N, V, ...] float32 or uint8, V views of each of N objects.
        rotations: quaternions [N, V, 4] from object to camera.
        classes: [N] integers.
        latents: further known quantities of every view by name, [N, V]; labels of the episodes.
        acted: names of latents whose difference is part of the action.

    Raises:
        ValueError: if the shapes disagree, or `acted` names an unknown latent.
    """

    def __init__(
        self,
        *,
        views: np.ndarray,
        rotations: np.ndarray,
        classes: np.ndarray,
        latents: Mapping[str, np.ndarray] | None = None,
        acted: Sequence[str] = (),
    ) -> None:
        self.views, self.rotations, self.classes = views, rotations, classes
        self.latents, self.acted = dict(latents or {}), tuple(acted)
        shape = views.shape[:2]
        if rotations.shape != (*shape, 4) or classes.shape != shape[:1]:
            raise ValueError(
                f"views [N, V, ...] go with rotations [N, V, 4] and classes [N], got {views.shape}, "
                f"{rotations.shape} and {classes.shape}"
            )
        if wrong := {name: x.shape for name, x in self.latents.items() if x.shape != shape}:
            raise ValueError(f"latents must be {shape}, one number per view, got {wrong}")
        if unknown := set(self.acted) - set(self.latents):
            raise ValueError(
                f"no latent {sorted(unknown)} to make an action of; there are {sorted(self.latents)}"
            )

    @property
    def action(self) -> ActionSpec:
        rotation = np.array([-1, -1, -1, 0], np.float32)
        free = np.full(len(self.acted), np.inf, np.float32)
        return ActionSpec(
            names=(*QUATERNION, *(f"change of {name}" for name in self.acted)),
            low=np.concatenate([rotation, -free]),
            high=np.concatenate([np.ones(4, np.float32), free]),
        )

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return tuple(self.views.shape[2:])

    def __len__(self) -> int:
        return len(self.views)

    def subset(self, chosen: np.ndarray) -> "PosedViews":
        """Some of the objects, by index or by a mask [N]."""
        return PosedViews(
            views=self.views[chosen],
            rotations=self.rotations[chosen],
            classes=self.classes[chosen],
            latents={name: values[chosen] for name, values in self.latents.items()},
            acted=self.acted,
        )

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` distinct views of an object. Labels: class, rotation [T, 4], and each latent [T]."""
        chosen = distinct_views(self.views.shape[1], steps=steps, item=item, generator=generator)
        rotation = self.rotations[item, chosen]
        latents = {name: values[item, chosen].astype(np.float32) for name, values in self.latents.items()}
        turn = relative_quaternions(rotation[:-1], rotation[1:])
        changes = [np.diff(latents[name])[:, None] for name in self.acted]
        return Episode(
            observations=self.views[item, chosen],
            actions=np.concatenate([turn, *changes], axis=1),
            item=item,
            labels={"class": self.classes[item], "rotation": rotation, **latents},
        )
