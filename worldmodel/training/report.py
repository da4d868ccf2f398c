"""A self-contained HTML page: text, tables and figures in one file that can be mailed."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1c2330; }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d5dae2 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .9em; border-bottom: 1px solid #e4e8ee;
text-align: right } td:first-child, th:first-child { text-align: left } th { background: #f4f6f9 }
pre { background: #f4f6f9; padding: .8em; overflow-x: auto; font-size: 13px } img { max-width: 100% }
figcaption { color: #5a6474; font-size: 13px } figure { margin: 1em 0 }
"""


class Report:
    """Collects sections and writes one HTML file; figures are also saved as PNG.

    Args:
        title: of the page.
        figures: folder for the PNG files.
    """

    def __init__(self, title: str, *, figures: Path) -> None:
        self._title = title
        self._figures = figures
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        head = "".join(f"<th>{html.escape(str(c))}</th>" for c in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Save figures/<name>.png, embed it, and close the figure."""
        self._figures.mkdir(parents=True, exist_ok=True)
        path = self._figures / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        data = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(caption, quote=True)
        self._parts.append(
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def write(self, path: Path) -> None:
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self._title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{html.escape(self._title)}</h1>{''.join(self._parts)}"
            f"</body></html>\n"
        )
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(page)
        temporary.replace(path)


def curves(
    rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]], *, columns: int = 3
) -> Figure:
    """Line plots of metrics.jsonl rows against the step: one panel per entry, one line per metric that occurs."""
    count = len(panels)
    height = (count + columns - 1) // columns
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 2.9 * height), squeeze=False)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if isinstance(r.get(name), int | float)]
            if points:
                axis.plot(
                    *zip(*points, strict=True), label=name, lw=1.2, marker="." if len(points) < 30 else ""
                )
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    for axis in axes.flat[count:]:
        axis.axis("off")
    figure.tight_layout()
    return figure
