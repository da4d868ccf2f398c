"""What an evaluation found, as numbers for a file and as tables."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from policies.evaluation import EvaluationResult
from policies.intervals import Interval, PairedComparison, compare, seeds_and_problems, wilson

Numbers = dict[str, Any]


def rate(success: np.ndarray) -> Interval:
    """Success rate of [training seeds, problems]: Wilson's interval for one seed, a bootstrap over both for several.

    The latter is widened to Wilson's for the mean rate on one set of problems: a bootstrap of nothing but successes is
    a point, however few they are.
    """
    seeds, problems = success.shape
    alone = wilson(success.sum() / seeds, problems)
    if seeds == 1:
        return alone
    found = seeds_and_problems(success)
    return Interval(value=found.value, low=min(found.low, alone.low), high=max(found.high, alone.high))


def about_intervals(seeds: Iterable[int]) -> str:
    """A sentence on the intervals of `rate` for a table of agents with so many training seeds each."""
    told = (
        "Brackets: 95 % interval (Wilson; with several training seeds, bootstrap over seeds and problems, no narrower "
        "than Wilson for one)."
    )
    few = any(1 < n < 5 for n in seeds)
    return (
        f"{told} With fewer than five training seeds they are too narrow for another training."
        if few
        else told
    )


Compared = list[tuple[str, str, int, PairedComparison]]


def paired_by_seed(success: Mapping[str, np.ndarray]) -> Compared:
    """Comparisons of all agents [training seeds, problems], one per training seed: seeds are no more problems.

    One seed is compared with each of several; agents with different numbers of several seeds are not compared.
    """
    found = []
    for (a, first), (b, second) in itertools.combinations(success.items(), 2):
        fewer, more = sorted((len(first), len(second)))
        if fewer not in (1, more):
            continue
        for i in range(more):
            found.append((a, b, i, compare(first[i % len(first)], second[i % len(second)])))
    return found


def summarise(result: EvaluationResult) -> Numbers:
    """Success at any time and at the end, costs, groups and paired comparisons of every agent."""
    agents = {name: _agent(result, name) for name in result.runs}
    one: list[Numbers] = []
    several: list[Numbers] = []
    for a, b, seed, comparison in paired_by_seed({name: result.success(name) for name in result.runs}):
        if len(result.runs[a]) == len(result.runs[b]) == 1:
            one.append({"first": a, "second": b, **asdict(comparison)})
        else:
            several.append({"first": a, "second": b, "training seed": seed, **asdict(comparison)})
    return {
        "problems": len(result.seeds),
        "trivially solved": len(result.trivial),
        "trivial share": len(result.trivial) / len(result.protocol.seeds),
        "agents": agents,
        "pairs": one + several,
    }


def _agent(result: EvaluationResult, name: str) -> Numbers:
    runs = result.runs[name]
    episodes = [episode for run in runs for episode in run]
    success, decisions = result.success(name), sum(e.decisions for e in episodes)
    solved = [e.first_success for e in episodes if e.first_success is not None]
    clipped = [e.clipped for e in episodes if e.clipped is not None]
    return {
        "inputs": result.inputs[name],
        "training seeds": len(runs),
        "success": asdict(rate(success)),
        "success by training seed": [asdict(wilson(int(s.sum()), len(s))) for s in success],
        "success any time": asdict(rate(result.success(name, at="any time"))),
        "success at the end": (
            asdict(rate(result.success(name, at="end"))) if result.protocol.play_on else None
        ),
        "median steps to success": float(np.median(solved)) if solved else None,
        "mean final distance": float(np.mean([e.end_distance for e in episodes])),
        "ended by the environment": sum(e.failed for e in episodes),
        "out of time": sum(e.out_of_time for e in episodes),
        "decisions per episode": decisions / len(episodes),
        "predictor steps per decision": sum(e.predictor_steps for e in episodes) / decisions,
        "seconds per decision": sum(e.seconds for e in episodes) / decisions,
        "clipped share": float(np.mean(clipped)) if clipped else None,
        "cost by iteration": _cost_by_iteration([e.costs for e in episodes if e.costs]),
        "groups": {
            distinction: {
                group: {
                    "problems": int(sum(names[s] == group for s in result.seeds)),
                    **asdict(rate(success[:, [names[s] == group for s in result.seeds]])),
                }
                for group in sorted(set(names.values()))
            }
            for distinction, names in result.groups.items()
        },
    }


def _cost_by_iteration(costs: list[tuple[float, ...]]) -> list[float]:
    shortest = min(map(len, costs), default=0)
    return [float(np.mean([c[i] for c in costs])) for i in range(shortest)]


def markdown(result: EvaluationResult) -> str:
    """The tables of an evaluation."""
    numbers, protocol = summarise(result), result.protocol
    seconds = "" if protocol.budget.seconds is None else f" and {protocol.budget.seconds:g} s of deciding"
    after = (
        "Episodes are played to the end."
        if protocol.play_on
        else "Episodes end at their first success, so success at the end is not known."
    )
    lines = [
        f"## {protocol.environment}: {numbers['problems']} problems of the {protocol.split} split",
        "",
        f"Budget {protocol.budget.env_steps} environment steps{seconds}. Success counts {_at(protocol.success_at)}. "
        f"{after} {numbers['trivially solved']} of {len(protocol.seeds)} problems drawn are solved at their start and "
        f"left out. "
        f"{about_intervals(map(len, result.runs.values()))} "
        f"Seconds are wall time per decision and environment, {protocol.batch} environments at once.",
        "",
        "| agent | reads | training seeds | success, any time | success, at the end | median steps to success | "
        "decisions | predictor steps per decision | seconds per decision |",
        "|---" * 9 + "|",
    ]
    for name, a in numbers["agents"].items():
        steps = a["median steps to success"]
        lines.append(
            f"| {name} | {a['inputs']} | {a['training seeds']} | {_rate(a['success any time'])} | "
            f"{_rate(a['success at the end'])} | {'' if steps is None else f'{steps:.0f}'} | "
            f"{a['decisions per episode']:.1f} | {a['predictor steps per decision']:.0f} | "
            f"{a['seconds per decision']:.2g} |"
        )
    for distinction, names in result.groups.items():
        groups = sorted(set(names.values()))
        counts = {g: sum(n == g for n in names.values()) for g in groups}
        lines += ["", f"Success by {distinction}:", ""]
        lines.append("| agent | " + " | ".join(f"{g} ({counts[g]})" for g in groups) + " |")
        lines.append("|---" * (len(groups) + 1) + "|")
        for name, a in numbers["agents"].items():
            cells = [_rate(a["groups"][distinction][g]) for g in groups]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if numbers["pairs"]:
        lines += ["", "On the same problems (exact McNemar test):", ""]
        lines += [
            "| first | second | training seed | only the first | only the second | difference | p |",
            "|---" * 7 + "|",
        ]
        for pair in numbers["pairs"]:
            lines.append(
                f"| {pair['first']} | {pair['second']} | {pair.get('training seed', '')} | {pair['first_only']} | "
                f"{pair['second_only']} | {_rate(pair['difference'])} | {pair['p_value']:.2g} |"
            )
    return "\n".join(lines) + "\n"


def _at(success_at: str) -> str:
    return "at any time" if success_at == "any time" else "at the end"


def _rate(interval: Numbers | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
