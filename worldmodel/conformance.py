"""Does a model keep the contract of `WorldModel`? For tests of models, and before planning with one."""

import torch
from torch import nn

from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.nn.dynamics import Workspace
from worldmodel.protocols import WorldModel


def check_world_model(
    model: WorldModel, batch: EpisodeBatch, *, window: int | None = None, tolerance: float = 1e-4
) -> None:
    """Check encode and rollout on some episodes.

    - an observation's latent depends on that observation alone;
    - imagining H steps equals imagining them one after another;
    - imagined rows depend on their own state and actions alone, and not on later actions;
    - rollouts are differentiable in the actions and leave the state as it was;
    - `rollout_candidates`, where the model has it, equals `rollout` of the repeated state.

    Args:
        batch: 2 or more stretches of 4 or more observations that differ.
        window: latents the model remembers when it imagines (its `window`, if it has one); all without.
        tolerance: relative to the largest latent.

    Raises:
        ValueError: naming what does not hold.
    """
    size, length = batch.observations.shape[:2]
    if size < 2 or length < 4:
        raise ValueError(f"the check needs 2 stretches of 4 observations, got {size} of {length}")
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("check the model as it is used: model.eval() first")
    window = window if window is not None else getattr(model, "window", None)
    with torch.no_grad():
        latents = model.encode(batch.observations)
        _check_encode(model, batch.observations, latents, tolerance)
        context = min(2, window or 2)
        state = LatentState(latents=latents[:, :context], actions=batch.actions[:, : context - 1])
        _check_rollout(model, state, batch.actions[:, context - 1 :], window, tolerance)
    _check_gradient(model, state, batch.actions[:, context - 1 :])


def _check_encode(
    model: WorldModel, observations: torch.Tensor, latents: torch.Tensor, tolerance: float
) -> None:
    if latents.ndim < 3 or latents.shape[:2] != observations.shape[:2] or not latents.is_floating_point():
        raise ValueError(
            f"encode: observations {tuple(observations.shape)} must become float latents [B, T, ...], got "
            f"{latents.dtype} {tuple(latents.shape)}"
        )
    if not bool(latents.isfinite().all()):
        raise ValueError("encode: a latent is not finite")
    alone = torch.stack([model.encode(o.unsqueeze(1))[:, 0] for o in observations.unbind(1)], dim=1)
    rows = torch.cat([model.encode(row.unsqueeze(0)) for row in observations])
    for name, other in {"the time steps": alone, "the stretches": rows}.items():
        if not _close(other, latents, tolerance):
            raise ValueError(f"encode: a latent depends on {name} that are encoded with it")


def _check_rollout(
    model: WorldModel, state: LatentState, future: torch.Tensor, window: int | None, tolerance: float
) -> None:
    before = (state.latents.clone(), state.actions.clone())
    imagined = model.rollout(state, future)
    expected = (len(state), future.shape[1], *state.latents.shape[2:])
    if imagined.shape != expected or not bool(imagined.isfinite().all()):
        raise ValueError(f"rollout: expected finite latents {expected}, got {tuple(imagined.shape)}")
    if not (torch.equal(before[0], state.latents) and torch.equal(before[1], state.actions)):
        raise ValueError("rollout: the state that was given was changed")
    if not _close(model.rollout(state, future), imagined, tolerance):
        raise ValueError("rollout: a second call gave other latents")
    step_by_step, now = [], state
    for action in future.unbind(1):
        latent = model.rollout(now, action.unsqueeze(1))[:, 0]
        step_by_step.append(latent)
        now = now.append(latent, action, window=window)
    if not _close(torch.stack(step_by_step, dim=1), imagined, tolerance):
        raise ValueError(
            "rollout: imagining H steps at once and one after another differ (is `window` right?)"
        )
    if not _close(model.rollout(state, future[:, :1]), imagined[:, :1], tolerance):
        raise ValueError("rollout: an imagined latent depends on later actions")
    single = LatentState(latents=state.latents[:1], actions=state.actions[:1])
    if not _close(model.rollout(single, future[:1]), imagined[:1], tolerance):
        raise ValueError("rollout: a row depends on the other rows of the batch")
    together = getattr(model, "rollout_candidates", None)
    if together is not None:
        candidates = torch.stack([future, future.flip(0), -future], dim=1)
        repeated = model.rollout(state.repeat(3), candidates.flatten(0, 1)).unflatten(0, (len(state), 3))
        workspace = Workspace()
        together(state, -candidates, workspace)
        for again in (None, workspace):
            if not _close(together(state, candidates, again), repeated, tolerance):
                raise ValueError("rollout_candidates: differs from rollout of the repeated state")


def _check_gradient(model: WorldModel, state: LatentState, future: torch.Tensor) -> None:
    with torch.enable_grad():
        actions = future.detach().clone().requires_grad_()
        imagined = model.rollout(state, actions)
        if not imagined.requires_grad:
            raise ValueError("rollout: the imagined latents carry no gradient to the actions")
        (gradient,) = torch.autograd.grad(imagined.sum(), [actions], allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()):
        raise ValueError("rollout: the gradient with respect to the actions is missing or not finite")


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * max(scale, 1e-12)).all())
