"""Planning speed: candidates x horizon per second of the CEM here and of stable-worldmodel's, same small models.

python -m venv PEER && PEER/bin/pip install --no-deps stable-worldmodel loguru
python scripts/benchmark_planning.py --peer PEER/lib/python3.11/site-packages

CPU time of one thread (what other programs take does not count), one run, the planners taking turns; the same model,
cost, samples, elites, iterations and horizon. Both plan from given latents: neither encodes. The peer is measured with
its own batch size of 1 and with the whole batch.
Of its package only `solver` is imported: the rest asks for torchvision and lancedb. What it prints is discarded.
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import io
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worldmodel.batches import LatentState
from worldmodel.jepa_dynamics import DynamicsModel
from worldmodel.nn.dynamics import RecurrentPredictor, ResidualPredictor, Workspace
from worldmodel.planning import CEM, ActionBounds, GoalCost
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

OURS, PEER = "this project", "stable-worldmodel"
ITERATIONS, ELITES = 10, 30
# Environments, candidates, horizon; 300 x 5 is the published setting of LeWM and DINO-WM.
CASES = [(1, 100, 5), (1, 300, 5), (8, 300, 5)]


MODELS: dict[str, tuple[type[ResidualPredictor] | type[RecurrentPredictor], int, int, int]] = {
    "residual 32-64-64": (ResidualPredictor, 32, 2, 64),
    "recurrent 64": (RecurrentPredictor, 64, 2, 64),
    "residual 192-256-256": (ResidualPredictor, 192, 10, 256),
}


class PeerModel(nn.Module):
    """The peer's `Costable` around the same model: mean squared distance of the last latent to the goal.

    Args:
        shared: with this project's `rollout_candidates`; else with `rollout`, as every model has it.
    """

    def __init__(self, model: DynamicsModel, *, shared: bool) -> None:
        super().__init__()
        self.model, self.shared, self.workspace = model, shared, Workspace()

    def get_cost(self, info: dict[str, torch.Tensor], candidates: torch.Tensor) -> torch.Tensor:
        batch, count = candidates.shape[:2]
        z = info["latent"]  # [B, K, D], repeated by the solver
        if self.shared:
            state = state_of(z[:, 0], candidates)
            last = self.model.rollout_candidates(state, candidates, self.workspace)[:, :, -1]
        else:
            state = state_of(z.flatten(0, 1), candidates)
            last = self.model.rollout(state, candidates.flatten(0, 1))[:, -1].view(batch, count, -1)
        return (last - info["goal"]).square().mean(-1)


def state_of(z: torch.Tensor, actions: torch.Tensor) -> LatentState:
    """Of latents [N, D] and no action yet."""
    return LatentState(latents=z.unsqueeze(1), actions=z.new_zeros(len(z), 0, actions.shape[-1]))


def peer_solver(folder: Path) -> Any:
    """The peer's CEMSolver, its package replaced by an empty one with the same files beneath."""
    package = types.ModuleType("stable_worldmodel")
    package.__path__ = [str(folder / "stable_worldmodel")]
    package.__spec__ = importlib.machinery.ModuleSpec("stable_worldmodel", None, is_package=True)
    if not Path(package.__path__[0], "solver").is_dir():
        raise SystemExit(f"no stable_worldmodel/solver in {folder}: give its site-packages, see --help")
    sys.modules["stable_worldmodel"] = package
    sys.path.append(str(folder))
    return importlib.import_module("stable_worldmodel.solver").CEMSolver


def our_call(
    model: DynamicsModel, z: torch.Tensor, goal: torch.Tensor, case: tuple[int, int, int], a: int
) -> Any:
    _, samples, horizon = case
    planner = CEM(
        bounds=ActionBounds(low=-torch.ones(a), high=torch.ones(a)),
        horizon=horizon, samples=samples, elites=ELITES, iterations=ITERATIONS, spread=1.0, execute_mean=True,
    )  # fmt: skip
    state = LatentState(latents=z.unsqueeze(1), actions=z.new_zeros(len(z), 0, a))
    cost, seeds = GoalCost(goal=goal, reduce="last"), range(len(z))
    return lambda step: planner.plan(model, state, cost, seeds=seeds, step=step).actions


def peer_call(
    solver: Any,
    model: DynamicsModel,
    z: torch.Tensor,
    goal: torch.Tensor,
    case: tuple[int, int, int],
    a: int,
    *,
    batch: int,
    shared: bool,
) -> Any:
    from gymnasium.spaces import Box

    envs, samples, horizon = case
    costs = PeerModel(model, shared=shared).eval()
    cem = solver(costs, batch_size=batch, num_samples=samples, n_steps=ITERATIONS, topk=ELITES)
    config = types.SimpleNamespace(horizon=horizon, action_block=1)
    cem.configure(action_space=Box(-1, 1, (envs, a), np.float32), n_envs=envs, config=config)

    def call(step: int) -> torch.Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            return cem.solve({"latent": z, "goal": goal})["actions"]

    return call


def measure(name: str, case: tuple[int, int, int], solver: Any, repeats: int) -> list[dict[str, Any]]:
    """Seconds per decision of each planner, taking turns."""
    kind, dim, action_dim, hidden = MODELS[name]
    torch.manual_seed(0)  # the model's weights; planners have generators of their own
    predictor = kind(dim, action_dim, hidden=hidden)
    model = DynamicsModel(encoder=nn.Identity(), predictor=predictor, action_scale=torch.ones(action_dim))
    model = model.eval().requires_grad_(False)
    envs, samples, horizon = case
    z, goal = torch.randn(2, envs, dim)
    calls: dict[str, Callable[[int], torch.Tensor]] = {OURS: our_call(model, z, goal, case, action_dim)}
    if solver is not None:
        for batch in sorted({1, envs}):
            calls[f"{PEER}, batch {batch}"] = peer_call(
                solver, model, z, goal, case, action_dim, batch=batch, shared=False
            )
        calls[f"{PEER}, batch {envs}, this project's rollouts"] = peer_call(
            solver, model, z, goal, case, action_dim, batch=envs, shared=True
        )
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    reached: dict[str, float] = {}
    for turn in range(repeats + 2):
        order = list(calls) if turn % 2 else list(calls)[::-1]
        for key in order:
            began = time.process_time()
            actions = calls[key](turn)
            taken = time.process_time() - began
            if turn >= 2:  # the first turns warm up
                seconds[key].append(taken)
            last = model.rollout(state_of(z, actions), actions)[:, -1]
            reached[key] = float((last - goal).square().mean())
    work = envs * samples * horizon * ITERATIONS
    ours = statistics.median(seconds[OURS])
    return [
        {
            "model": name, "envs": envs, "samples": samples, "horizon": horizon, "planner": key,
            "steps_per_s": work / statistics.median(taken), "median_s": statistics.median(taken),
            "min_s": min(taken), "max_s": max(taken), "time_over_ours": statistics.median(taken) / ours,
            "final_cost": reached[key],
        }
        for key, taken in seconds.items()
    ]  # fmt: skip


def table(result: dict[str, Any]) -> str:
    head = [
        "model",
        "envs x candidates x horizon",
        "planner",
        "candidates x horizon per s",
        "ms per decision (range)",
    ]
    head += ["time / ours"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in result["cases"]:
        size = f"{row['envs']} x {row['samples']} x {row['horizon']}"
        spread = f"{1e3 * row['median_s']:.1f} ({1e3 * row['min_s']:.1f} .. {1e3 * row['max_s']:.1f})"
        cells = [row["model"], size, row["planner"], f"{row['steps_per_s']:,.0f}", spread]
        lines.append("| " + " | ".join([*cells, f"{row['time_over_ours']:.2f}"]) + " |")
    repeats, peer = result["repeats"], result["peer"] or "(not installed)"
    text = [
        "Models: `ResidualPredictor` and `RecurrentPredictor`, numbers of latent and hidden units.",
        f"CEM, {ITERATIONS} iterations, {ELITES} elites; CPU time of one thread, medians of {repeats} decisions.",
        f"A decision is for all environments. Peer: {PEER} {peer}, its `solver` imported without the rest of",
        "the package. Here every candidate is projected into the action bounds and the books are kept; the peer",
        "does neither. It hands a model latents that are repeated for every candidate, and is measured with the",
        "model's `rollout` and with its `rollout_candidates`, which shares what candidates have in common.",
    ]
    return "\n".join([*lines, "", *text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", type=Path, help="site-packages with stable-worldmodel, see above; without: ours alone"
    )
    parser.add_argument("--repeats", type=int, default=31, help="timed decisions of each planner and case")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    solver = version = None
    if arguments.peer is not None:
        solver = peer_solver(arguments.peer)
        found = importlib.metadata.distributions(name=PEER, path=[str(arguments.peer)])
        version = next((d.version for d in found), "unknown")
    rows = []
    for name in MODELS:
        for case in CASES:
            rows += measure(name, case, solver, arguments.repeats)
            for row in rows[-4:]:
                print({k: v for k, v in row.items() if k != "final_cost"}, flush=True)
    result = {"cases": rows, "repeats": arguments.repeats, "peer": version, **provenance()}
    # Where the peer is installed is nobody's business.
    if arguments.peer is not None:
        result["command"] = result["command"].replace(str(arguments.peer), "SITE_PACKAGES")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "planning_speed.json"
    write_json(path, result)
    path.with_suffix(".md").write_text(table(result))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
