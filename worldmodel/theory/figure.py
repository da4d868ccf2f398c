"""Draws the numbers of `worldmodel.theory.study`."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

NAMES = {"jepa": "JEPA", "mae": "MAE"}
COLOURS = {"jepa": "tab:blue", "mae": "tab:orange"}


def draw(study: dict[str, Any], path: Path) -> None:
    """Growth of the modes, order reversal, rank correlation by depth and bias by depth, as one PNG."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic("JJJMMM;AABBCC")
    for objective in NAMES:
        _growth(axes[objective[0].upper()], study["modes"], objective)
    _reversal(axes["A"], study["reversal"])
    _rank(axes["B"], study["correlation"])
    _bias(axes["C"], study["bias"])
    for name in "ABC":
        axes[name].set_xlabel("encoder depth L")
        axes[name].grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _growth(ax: Axes, modes: dict[str, Any], objective: str) -> None:
    curves, count = modes["curves"][objective], len(modes["covariance"])
    # The first mode is the one of highest lambda and lowest rho; dark to light is falling lambda.
    exact, matrix = np.array(curves["exact"]), np.array(curves["matrix"])
    for i, (covariance, regression) in enumerate(zip(modes["covariance"], modes["regression"], strict=True)):
        colour = _shade(i, count)
        label = rf"$\lambda$ = {covariance:g}, $\rho$ = {regression:g}"
        ax.plot(curves["times"], exact[:, i], color=colour, label=label)
        ax.plot(curves["matrix_times"], matrix[:, i], "o", color=colour, ms=4)
    first = int(np.argmin(curves["half_times"]))
    kind = (
        r"highest $\lambda$" if first == 0 else r"highest $\rho$" if first == count - 1 else "neither extreme"
    )
    ax.set(
        xscale="log", xlabel="time t", ylabel=r"$\bar w_i(t)\ /\ \bar w_i^*$", ylim=(-0.03, 1.05),
        title=f"{NAMES[objective]}, L = {modes['depth']}, $w_0$ = {modes['layer_init']:g}: {kind} first",
    )  # fmt: skip
    handles, _ = ax.get_legend_handles_labels()
    styles = [
        Line2D([], [], color="k", label="exact"),
        Line2D([], [], color="k", ls="", marker="o", ms=4, label="matrices"),
    ]
    ax.legend(handles=[*handles, *styles], loc="upper left", fontsize=9)
    ax.grid(alpha=0.3)


def _reversal(ax: Axes, reversal: dict[str, Any]) -> None:
    for objective, name in NAMES.items():
        a, b = np.array(reversal["half_times"][objective]).T
        ax.plot(reversal["depths"], a / b, "o-", color=COLOURS[objective], label=name)
    (rate_a, rate_b), (rho_a, rho_b) = reversal["covariance"], reversal["regression"]
    ax.axhline(1, color="k", lw=0.8)
    right = reversal["depths"][-1]
    ax.text(right, 1.02, "B first", ha="right", va="bottom")
    ax.text(right, 0.98, "A first", ha="right", va="top")
    ax.set(
        ylabel=r"$t_A\ /\ t_B$ (time to half)",
        title=rf"A ($\lambda$ {rate_a:g}, $\rho$ {rho_a:g}) or B ({rate_b:g}, {rho_b:g}) first, "
        rf"$w_0$ = {reversal['layer_init']:g}",
    )
    ax.title.set_fontsize(11)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.08))


def _rank(ax: Axes, correlation: dict[str, Any]) -> None:
    for objective, name in NAMES.items():
        spearman = correlation["spearman"][objective]
        for key, symbol, style in (("covariance", r"$\lambda$", "o-"), ("regression", r"$\rho$", "s--")):
            ax.plot(
                correlation["depths"],
                spearman[key],
                style,
                color=COLOURS[objective],
                label=f"{name}, {symbol}",
            )
    ax.axhline(0, color="k", lw=0.8)
    ax.set(ylabel="Spearman(earliness, .)", ylim=(-1.05, 1.05))
    ax.set_title(rf"{correlation['modes']} random modes, $w_0$ = {correlation['layer_init']:g}", fontsize=11)
    ax.legend(loc="lower right", ncols=2, fontsize=9)


def _bias(ax: Axes, bias: dict[str, Any]) -> None:
    for init, style in zip(bias["inits"], ("o-", "s--"), strict=True):
        start = (
            rf"$\epsilon$ = {init['product_init']:g}"
            if "product_init" in init
            else rf"$w_0$ = {init['layer_init']:g}"
        )
        for objective, name in NAMES.items():
            low, high = np.array(init["half_times"][objective]).T
            ax.plot(bias["depths"], low / high, style, color=COLOURS[objective], label=f"{name}, {start}")
    ax.axhline(1, color="k", lw=0.8)
    low_rho, high_rho = bias["regression"]
    ax.set(ylabel=rf"$t(\rho = {low_rho:g})\ /\ t(\rho = {high_rho:g})$, equal $\lambda$")
    ax.set_title("product init or layer init held while L grows", fontsize=11)
    ax.legend(loc="upper left", fontsize=9)


def _shade(index: int, count: int) -> tuple[float, ...]:
    return tuple(colormaps["viridis"](0.85 * index / max(count - 1, 1)))
