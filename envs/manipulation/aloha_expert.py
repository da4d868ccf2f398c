"""Scripted experts for ALOHA's arms: one hands a cube to the other; they plug a peg into a socket.

Poses of the grippers are planned in space and turned into joint targets by damped least squares on a kinematic copy of
the arms (Buss 2004, Introduction to inverse kinematics), so that the experts answer to where the objects really are.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.manipulation.rendering import require_mujoco

_GRASP = np.array([0.135, 0.0, 0.0])  # the point between the fingers, in the frame of the gripper [m]
_ABOVE = np.array([0.0, 0.0, 0.10])
_MEETING = np.array([0.0, 0.5, 0.25])
_STEP, _TURN = 0.008, 0.05  # the most that a gripper moves [m] and turns [rad] in a control step of 0.02 s
_NEAR = 0.01  # m; a phase ends here
_DAMPING = 0.05
_OPEN, _CLOSED = 1.0, 0.0
_INSERTION_TILT = 60
_CAREFUL = 0.003  # with something in the fingers
_HALF = 0.06  # half the length of the peg and of the socket
_ASIDE = np.array([0.02, 0.0, 0.0])


def _frame(approach: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a gripper that points along `approach` and opens along `fingers`."""
    return np.stack([approach, fingers, np.cross(approach, fingers)], axis=1)


def _tilted(degrees: float, *, left: bool = False) -> np.ndarray:
    """A gripper that points away from its arm and down."""
    tilt, side = np.deg2rad(degrees), 1.0 if left else -1.0
    return _frame(np.array([side * np.cos(tilt), 0.0, -np.sin(tilt)]), np.array([0.0, side, 0.0]))


# The left gripper, level, with one finger above the other.
_TAKE = _frame(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))


@dataclass(frozen=True)
class _Grip:
    """Where the point between the fingers is to be [3], how the gripper is turned [3, 3], and how far it is open."""

    place: np.ndarray
    turn: np.ndarray
    opening: float


@dataclass(frozen=True)
class _Phase:
    """What both grippers head for, for how many steps at least, and by how much at most in each of them [m]."""

    left: _Grip
    right: _Grip
    hold: int = 0
    step: float = _STEP


class _Arm:
    """The joints of one arm as they are commanded."""

    def __init__(self, model: Any, data: Any, side: str, first: int) -> None:
        self._mujoco, self._model = require_mujoco(), model
        self._data = self._mujoco.MjData(model)
        self._data.qpos[:] = data.qpos
        self._body = model.body(f"vx300s_{side}/gripper_link").id
        self._joints = slice(first, first + 6)
        self._limits = model.jnt_range[self._joints]
        self._update()

    def _update(self) -> None:
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)
        self.rotation = self._data.xmat[self._body].reshape(3, 3).copy()
        self.grasp = self._data.xpos[self._body] + self.rotation @ _GRASP

    def head_for(self, grip: _Grip, *, step: float) -> np.ndarray:
        """The next joint targets [6]: a step of at most `step` metres towards a pose."""
        turn = _rotation_vector(grip.turn @ self.rotation.T)
        error = np.concatenate([_shortened(grip.place - self.grasp, step), _shortened(turn, _TURN)])
        places, turns = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        self._mujoco.mj_jac(self._model, self._data, places, turns, self.grasp, self._body)
        jacobian = np.concatenate([places, turns])[:, self._joints]
        change = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), error)
        wanted = np.clip(self._data.qpos[self._joints] + change, self._limits[:, 0], self._limits[:, 1])
        self._data.qpos[self._joints] = wanted
        self._update()
        return wanted


def _shortened(vector: np.ndarray, most: float) -> np.ndarray:
    return vector * min(1.0, most / max(float(np.linalg.norm(vector)), 1e-9))


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a rotation [3, 3]."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    length = float(np.linalg.norm(axis))
    return np.zeros(3) if length < 1e-9 else angle * axis / length


class TwoArms:
    """Phases one after the other; each ends when both grippers are where they were to be.

    Args:
        model, data: of the simulator at the beginning of an episode.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self._left, self._right = _Arm(model, data, "left", 0), _Arm(model, data, "right", 8)
        self._number, self._since = 0, 0

    def _phases(self, data: Any) -> list[_Phase]:
        raise NotImplementedError

    def targets(self, data: Any) -> np.ndarray:
        """The next action [14]."""
        phases = self._phases(data)
        phase = phases[self._number]
        joints = [
            arm.head_for(grip, step=phase.step)
            for arm, grip in ((self._left, phase.left), (self._right, phase.right))
        ]
        far = max(
            np.linalg.norm(phase.left.place - self._left.grasp),
            np.linalg.norm(phase.right.place - self._right.grasp),
        )
        self._since += 1
        if far < _NEAR and self._since > phase.hold and self._number < len(phases) - 1:
            self._number, self._since = self._number + 1, 0
        return np.concatenate([joints[0], [phase.left.opening], joints[1], [phase.right.opening]])


class HandOver(TwoArms):
    """Above the cube, down, grasp, lift to the meeting point, the left gripper round the cube, grasp, release."""

    def _phases(self, data: Any) -> list[_Phase]:
        if self._number < 2:
            self._cube = data.qpos[-7:-4].copy()
        # Steeper near the arm, where its wrist would be stretched, and its joints could flip.
        pick, give = _tilted(float(np.interp(self._cube[0], [0.0, 0.2], [60, 85]))), _tilted(60)
        wait = _Grip(_MEETING - [0.12, 0.0, 0.0], _TAKE, _OPEN)
        take = _Grip(_MEETING, _TAKE, _OPEN)
        return [
            _Phase(wait, _Grip(self._cube + _ABOVE, pick, _OPEN)),
            _Phase(wait, _Grip(self._cube, pick, _OPEN), 10),
            _Phase(wait, _Grip(self._cube, pick, _CLOSED), 25),
            _Phase(wait, _Grip(_MEETING, give, _CLOSED), 15),
            _Phase(take, _Grip(_MEETING, give, _CLOSED), 15),
            _Phase(replace(take, opening=_CLOSED), _Grip(_MEETING, give, _CLOSED), 25),
            _Phase(replace(take, opening=_CLOSED), _Grip(_MEETING, give, _OPEN)),
        ]


class Insertion(TwoArms):
    """Both arms above their objects, down, grasp, lift; the peg before the mouth of the socket, and in."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        self._correction = np.zeros(3)

    def _phases(self, data: Any) -> list[_Phase]:
        peg, socket = data.qpos[-14:-7], data.qpos[-7:]
        if self._number < 2:
            # Each is held towards its own arm, so that the fingers are not between them.
            self._peg, self._socket = peg[:3] + _ASIDE, socket[:3] - _ASIDE
        if self._number >= 5:
            # How the tip of the peg lies beside the mouth of the socket, as it is seen: the peg turns in its grip.
            tip, mouth = peg[:3] - _HALF * _axis(peg[3:]), socket[:3] + _HALF * _axis(socket[3:])
            self._correction = np.clip(self._correction + 0.05 * (mouth - tip) * [0, 1, 1], -0.03, 0.03)
        left, right = _tilted(_INSERTION_TILT, left=True), _tilted(_INSERTION_TILT)
        apart = np.array([0.13, 0.0, 0.0])

        def both(
            left_place: np.ndarray,
            right_place: np.ndarray,
            opening: float,
            hold: int = 0,
            step: float = _STEP,
        ) -> _Phase:
            return _Phase(_Grip(left_place, left, opening), _Grip(right_place, right, opening), hold, step)

        before, inside = _MEETING + apart + self._correction, _MEETING + 0.3 * apart + self._correction
        return [
            both(self._socket + _ABOVE, self._peg + _ABOVE, _OPEN),
            both(self._socket, self._peg, _OPEN, 10),
            both(self._socket, self._peg, _CLOSED, 25),
            both(self._socket + _ABOVE, self._peg + _ABOVE, _CLOSED, 0, _CAREFUL),
            both(_MEETING - apart, _MEETING + apart, _CLOSED, 10, _CAREFUL),
            both(_MEETING - apart, before, _CLOSED, 60, _CAREFUL),
            both(_MEETING - 0.3 * apart, inside, _CLOSED, 0, _CAREFUL / 2),
        ]


def _axis(quaternion: np.ndarray) -> np.ndarray:
    """The x axis [3] of a body with that orientation (w, x, y, z)."""
    w, x, y, z = quaternion
    return np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
