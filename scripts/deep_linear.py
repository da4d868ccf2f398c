"""What a deep linear JEPA and MAE learn first: the exact theory, a matrix simulation beside it, tables and a figure.

    python scripts/deep_linear.py

Writes deep_linear.json, deep_linear.md (tables made from it) and deep_linear.png.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worldmodel.theory.figure import draw
from worldmodel.theory.study import learning_order_study
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

NAMES = {"jepa": "JEPA", "mae": "MAE"}


def table(header: list[str], body: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a markdown table, figures to four digits, and an empty one."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in body]
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)] + [""]


def modes_section(modes: dict[str, Any]) -> list[str]:
    curves = {name: modes["curves"][o] for o, name in NAMES.items()}
    differences = (f"{name} {c['largest_difference']:.1e}" for name, c in curves.items())
    return [
        f"## Four modes, L = {modes['depth']}, w0 = {modes['layer_init']:g}",
        "",
        *table(
            ["lambda", "rho", *(f"{name} time" for name in curves)],
            zip(
                modes["covariance"],
                modes["regression"],
                *(c["half_times"] for c in curves.values()),
                strict=True,
            ),
        ),
        f"Largest difference of wbar between the exact trajectory and all matrices: {', '.join(differences)}.",
        "",
    ]


def reversal_section(reversal: dict[str, Any]) -> list[str]:
    (rate_a, rate_b), (rho_a, rho_b) = reversal["covariance"], reversal["regression"]
    jepa, mae = (reversal["half_times"][o] for o in NAMES)
    body = [
        [d, *j, "AB"[j[1] < j[0]], *m, "AB"[m[1] < m[0]], "-" if rule is None else rule]
        for d, j, m, rule in zip(reversal["depths"], jepa, mae, reversal["threshold"], strict=True)
    ]
    return [
        "## Order reversal",
        "",
        f"A has lambda {rate_a:g} and rho {rho_a:g}, B lambda {rate_b:g} and rho {rho_b:g}; w0 = "
        f"{reversal['layer_init']:g}. The last column is the w0 above which",
        "the two largest terms of the critical time let JEPA learn B first.",
        "",
        *table(["L", "JEPA t_A", "JEPA t_B", "first", "MAE t_A", "MAE t_B", "first", "rule, w0"], body),
    ]


def correlation_section(correlation: dict[str, Any]) -> list[str]:
    columns = [correlation["spearman"][o][k] for o in NAMES for k in ("covariance", "regression")]
    return [
        "## What the learning order goes with",
        "",
        f"Spearman of earliness with lambda and with rho over {correlation['modes']} modes, lambda uniform in "
        f"{correlation['covariance_range']} and rho in",
        f"{correlation['regression_range']}, independent of each other; w0 = {correlation['layer_init']:g}.",
        "",
        *table(
            ["L", "JEPA, lambda", "JEPA, rho", "MAE, lambda", "MAE, rho"],
            zip(correlation["depths"], *columns, strict=True),
        ),
    ]


def bias_section(bias: dict[str, Any]) -> list[str]:
    low, high = bias["regression"]
    header, columns = ["L"], []
    for init in bias["inits"]:
        held = f"eps = {init['product_init']:g}" if "product_init" in init else f"w0 = {init['layer_init']:g}"
        for objective, name in NAMES.items():
            header.append(f"{name}, {held}")
            columns.append([slow / fast for slow, fast in init["half_times"][objective]])
    return [
        "## Bias towards rho by depth",
        "",
        f"Time for rho = {low:g} over time for rho = {high:g} at equal lambda. At a fixed product init eps the bias of",
        "JEPA grows with depth; at a fixed layer init w0 it does not.",
        "",
        *table(header, zip(bias["depths"], *columns, strict=True)),
    ]


def page(study: dict[str, Any]) -> str:
    """The markdown page."""
    lines = [
        "# Deep linear JEPA and MAE: what is learnt first",
        "",
        f"Made by `{study['command']}` at commit {study['commit']} on {study['date']}. Times are to half of the fixed",
        "point under gradient flow, the factor L kept; w0 is the singular value of one layer at the start, eps = w0^L.",
        "",
        "![figure](deep_linear.png)",
        "",
        *modes_section(study["modes"]),
        *reversal_section(study["reversal"]),
        *correlation_section(study["correlation"]),
        *bias_section(study["bias"]),
    ]
    return "\n".join(lines)


def without_curves(study: dict[str, Any]) -> dict[str, Any]:
    """What is stored: the figure's thousands of points are made again in seconds."""
    kept = ("half_times", "largest_difference")
    curves = {o: {k: c[k] for k in kept} for o, c in study["modes"]["curves"].items()}
    return {**study, "modes": {**study["modes"], "curves": curves}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the three files")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    study = {**learning_order_study(), **provenance()}
    write_json(out / "deep_linear.json", without_curves(study))
    (out / "deep_linear.md").write_text(page(study))
    draw(study, out / "deep_linear.png")
    print(page(study))


if __name__ == "__main__":
    main()
