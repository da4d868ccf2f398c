"""Which planner settings solve Two Rooms when the model is perfect: planning in the simulator, on selection problems.

Starting from one setting, one thing at a time is changed. The cost is the plain distance between states, which does not
know of the wall. What fails here is the planner's or the cost's failure; no world model can make up for it.

python scripts/study_oracle_planning.py [--problems 100]       minutes to an hour; a stopped study goes on
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.goals import Problem
from envs.two_rooms import TwoRooms
from envs.two_rooms_geometry import move
from policies.agents import OraclePlanner, PlanningSettings
from policies.evaluation import EvaluationProtocol, evaluate
from policies.intervals import wilson
from policies.rollouts import EpisodeBudget
from policies.simulator_model import SimulatorModel
from worldmodel.batches import LatentState
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

BLOCK = 4
BASE: dict[str, Any] = {
    "name": "cem", "horizon": 15, "samples": 100, "iterations": 3, "elites": 10, "noise_beta": 2.0,
    "reduce": "min", "execute": 4,
}  # fmt: skip
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"execute": 2},
    {"samples": 50, "elites": 5},
    {"samples": 200, "elites": 20},
    {"iterations": 1},
    {"iterations": 2},
    {"horizon": 10},
    {"horizon": 18},
    {"noise_beta": 0.0},
    {"noise_beta": 1.0},
    {"reduce": "last"},
    {"reduce": "sum"},
    {"name": "icem", "momentum": 0.0, "decay": 1.0},
    {"name": "mppi", "temperature": 0.1, "elites": None},
    {"execute": 1},
    {"iterations": 5},
    {"reduce": "sum", "samples": 200, "elites": 20, "iterations": 5},
)

# Settings run again on other problems, which none of them was noticed on.
CONFIRMED: tuple[dict[str, Any], ...] = (
    {},
    {"execute": 2},
    {"samples": 50, "elites": 5},
    {"horizon": 18},
    {"name": "icem", "momentum": 0.0, "decay": 1.0},
)


class StatesOnly(TwoRooms):
    """Without pictures and path lengths, which take most of the time and are read by nobody here."""

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.asarray(states)

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.linalg.norm(states - problem.goal, axis=1)


class TwoRoomsModel(SimulatorModel):
    """All problems in one call: many times faster for many problems."""

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        rows, horizon = future.shape[:2]
        layouts = np.repeat(np.stack([p.layout for p in self.problems]), rows // len(self.problems), axis=0)
        actions = future.numpy().reshape(rows, horizon * self.block, -1).astype(np.float64)
        position, path = state.latents[:, -1].numpy().astype(np.float64), []
        for t in range(actions.shape[1]):
            position = move(position, actions[:, t], layouts)
            path.append(position)
        return torch.from_numpy(np.stack(path[self.block - 1 :: self.block], axis=1)).to(state.latents.dtype)


def label(change: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in change.items() if v is not None) or "base"


def measure(
    change: dict[str, Any], protocol: EvaluationProtocol, folder: Path, *, progress: bool
) -> dict[str, Any]:
    options = {k: v for k, v in {**BASE, **change}.items() if v is not None}
    planning = PlanningSettings(execute=options.pop("execute"), reduce=options.pop("reduce"), planner=options)
    oracle = OraclePlanner(block=BLOCK, planning=planning, simulator=TwoRoomsModel)
    file = "oracle_" + "".join(c if c.isalnum() else "_" for c in label(change))
    result = evaluate(
        {file: [oracle]}, make_env=StatesOnly, protocol=protocol, folder=folder, progress=progress
    )
    (run,) = result.runs[file]
    solved = [e.first_success for e in run if e.first_success is not None]
    rate = wilson(len(solved), len(run))
    plans = sum(e.decisions for e in run)
    return {
        "change": label(change),
        "planning": planning.json(),
        "problems": len(run),
        "success": rate.value,
        "low": rate.low,
        "high": rate.high,
        "median steps": float(np.median(solved)) if solved else None,
        "predictor steps per plan": round(sum(e.predictor_steps for e in run) / plans),
        "plans per episode": plans / len(run),
        "failures": [e.seed for e in run if not e.any_time],
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| change | success | 95 % | problems | median steps | predictor steps per plan | plans per episode |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        steps = "" if r["median steps"] is None else f"{r['median steps']:.0f}"
        lines.append(
            f"| {r['change']} | {r['success']:.3f} | {r['low']:.3f} to {r['high']:.3f} | {r['problems']} | {steps} | "
            f"{r['predictor steps per plan']} | {r['plans per episode']:.1f} |"
        )
    return lines


def markdown(rows: list[dict[str, Any]], confirmation: list[dict[str, Any]], budget: int) -> str:
    base = ", ".join(f"{k} {v}" for k, v in BASE.items())
    lines = [
        "# Planning in the simulator of Two Rooms",
        "",
        f"Selection problems, {budget} environment steps, blocks of {BLOCK}.",
        f"Base: {base}. Interval: Wilson, 95 %. Steps: environment steps to success, of the solved.",
        "",
        *table(rows),
    ]
    if confirmation:
        lines += ["", "The same on other selection problems:", "", *table(confirmation)]
    return "\n".join(lines) + "\n"


def store(rows: list[dict[str, Any]], confirmation: list[dict[str, Any]], folder: Path, budget: int) -> None:
    """Write what is measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "planning_oracle.json"
    numbers = {"base": BASE, "block": BLOCK, "budget": budget, "rows": rows, "confirmation": confirmation}
    write_json(path, {**numbers, **provenance()})
    path.with_suffix(".md").write_text(markdown(rows, confirmation, budget))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--budget", type=int, default=200, help="environment steps of an episode")
    parser.add_argument("--runs", type=Path, default=Path("runs/study_oracle_planning"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--no-progress", dest="progress", action="store_false")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.problems
    parts = (
        (CHANGES, range(count), arguments.runs),
        (CONFIRMED, range(count, 3 * count), arguments.runs / "confirmation"),
    )
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for (changes, seeds, folder), rows in zip(parts, found, strict=True):
        protocol = EvaluationProtocol(
            environment="two_rooms",
            split="selection",
            seeds=tuple(seeds),
            budget=EpisodeBudget(env_steps=arguments.budget),
            batch=len(seeds),
            play_on=False,
        )
        for change in changes:
            rows.append(measure(change, protocol, folder, progress=arguments.progress))
            print(table(rows[-1:])[-1], flush=True)
            store(*found, arguments.out, arguments.budget)


if __name__ == "__main__":
    main()
