"""The results of a bench as JSON, Markdown and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lic.evaluation.bjontegaard import log_rate
from lic.evaluation.metrics import METRICS, Floats

Results = dict[str, Any]  # what lic.evaluation.bench.run returns

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "svg.hashsalt": "lic",  # the same results, the same file
    "svg.fonttype": "none",
}
_MODEL_COLOURS = ("#d62246", "#7b2cbf", "#e07a00", "#0b7a75", "#b5179e", "#1d4ed8", "#6a994e", "#9c6644", "#000000")
_PEER_COLOURS = ("#4e79a7", "#86bcb6", "#59a14f", "#b6992d", "#79706e", "#9d7660", "#6f8fbf", "#8cd17d", "#a0a0a0")
_BPP = (0.08, 3)  # shown in plots
_TICKS = (0.1, 0.2, 0.5, 1, 2)


def write(results: Results, folder: Path) -> None:
    """report.json, report.md, and NAME.svg and NAME.png for each metric."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n", "utf-8")
    plotted = [metric for metric in results["metrics"] if _curves(results, metric)]
    with matplotlib.rc_context(_STYLE):
        for metric in plotted:
            figure = plot(results, metric)
            figure.savefig(folder / f"{metric}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{metric}.png", dpi=150)
    (folder / "report.md").write_text(markdown(results, plotted), "utf-8")


def markdown(results: Results, plotted: Iterable[str]) -> str:
    """The report; `plotted` names the metrics that have a plot beside it."""
    machine, metrics = results["machine"], results["metrics"]
    peers = {name: curve for name, curve in results["curves"].items() if name in results["versions"]}
    parts = [
        "# Rate-distortion report",
        f"{len(results['pictures'])} pictures ({', '.join(results['pictures'])}). Bits are the sizes of files; pixels "
        "come from a process other than the encoder's; metrics are computed for each picture and averaged. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {results['python']}.",
        *(f"![{METRICS[metric].label} over bits per pixel]({metric}.svg)" for metric in plotted),
        bd_rate_table(results),
    ]
    if any(curve["lossless"] for curve in peers.values()):
        parts += ["## Lossless", _lossless_table(peers)]
    if results["costs"]:
        parts += ["## Time and memory", _cost_table(results)]
    for metric in plotted:
        rates = results["bd_rates"][metric]
        names = [results["curves"][name]["label"] for name in rates]
        rows = [[name, *map(_percent, row.values())] for name, row in zip(names, rates.values(), strict=True)]
        title = f"BD-rate matrix, {METRICS[metric].label}: per cent more bits of the row than of the column"
        parts.append(_details(title, _table(["", *names], rows)))
    rows = [
        [
            curve["label"],
            _settings(settings),
            f"{bpp:.6g}",
            *(f"{curve[m][i]:.6g}" if m in curve else "" for m in metrics),
        ]
        for curve in peers.values()
        for i, (settings, bpp) in enumerate(zip(curve["settings"], curve["bpp"], strict=True))
    ]
    parts.append(_details("Points of the curves", _table(["", "settings", "bpp", *metrics], rows)))
    rows = [[peers[name]["label"], _settings(versions)] for name, versions in results["versions"].items()]
    rows += [["metrics", _settings(metrics)]]
    parts.append(_details("Versions", _table(["", "of"], rows)))
    return "\n\n".join(parts) + "\n"


def bd_rate_table(results: Results) -> str:
    """For each model (each peer, where there is no model), its BD-rate against all other curves, as Markdown."""
    curves, rates = results["curves"], results["bd_rates"]
    parts = ["## BD-rates", "Per cent more bits than the reference for the same quality; negative is fewer."]
    for subject in _subjects(results):
        rows = [
            [curve["label"], *(_percent(rates[metric].get(subject, {}).get(name)) for metric in rates)]
            for name, curve in curves.items()
            if name != subject and not curve["lossless"]
        ]
        header = [f"{curves[subject]['label']} against", *(METRICS[metric].label.split(",")[0] for metric in rates)]
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


def plot(results: Results, metric: str) -> Figure:
    """Left: quality over bits per pixel. Right: bits for the same quality, relative to the first model (or peer)."""
    curves = _curves(results, metric)
    reference = next(iter(_subjects(results)), next(iter(curves)))
    rates = results["bd_rates"][metric]
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = sorted(curves, key=lambda name: np.nan_to_num(rates[name][reference], nan=np.inf))
    styles = _styles(curves)
    against = log_rate(*_xy(curves[reference], metric))
    for name in order:
        bpp, quality = _xy(curves[name], metric)
        delta = "" if name == reference else f"  {_percent(rates[name][reference])} %"
        left.plot(bpp, quality, label=curves[name]["label"] + delta, **styles[name])
        own = log_rate(bpp, quality)
        grid = np.linspace(max(own.x[0], against.x[0]), min(own.x[-1], against.x[-1]), 100)
        if grid[0] < grid[-1]:
            right.plot(grid, 100 * np.expm1(own(grid) - against(grid)), **styles[name] | {"marker": ""})
    points = [point for name in curves for point in zip(*_xy(curves[name], metric), strict=True)]
    shown = [quality for bpp, quality in points if _BPP[0] <= bpp <= _BPP[1] and np.isfinite(quality)]
    margin = 0.03 * (max(shown) - min(shown))
    left.set(xscale="log", xlim=_BPP, ylim=(min(shown) - margin, max(shown) + margin))
    left.set(xlabel="bits per pixel", ylabel=METRICS[metric].label)
    left.xaxis.set(major_locator=FixedLocator(_TICKS), minor_locator=NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    right.set(ylim=(-40, 120), xlabel=METRICS[metric].label)
    right.set_ylabel(f"bits relative to {curves[reference]['label']}, %")
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+.0f}" if y else "0"))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="by BD-rate")
    return figure


def _styles(curves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How each line looks: models thick, peers thin, published curves dashed."""
    styles, counts = {}, {"model": 0, "peer": 0, "published": 0}
    for name, curve in curves.items():
        kind = curve["kind"]
        index = counts[kind]
        counts[kind] += 1
        if kind == "model":
            styles[name] = dict(color=_MODEL_COLOURS[index % 9], linewidth=2.4, marker="o", markersize=4, zorder=3)
        elif kind == "peer":
            styles[name] = dict(color=_PEER_COLOURS[index % 9], linewidth=1.2, marker=".", markersize=4, zorder=2)
        else:
            dashes = (0, (4 + index % 3 * 2, 2))
            styles[name] = dict(
                color=matplotlib.colormaps["copper"](index / 14), linewidth=0.8, linestyle=dashes, zorder=1
            )
    return styles


def _subjects(results: Results) -> list[str]:
    lossy = {name: curve for name, curve in results["curves"].items() if not curve["lossless"]}
    models = [name for name, curve in lossy.items() if curve["kind"] == "model"]
    return models or [name for name, curve in lossy.items() if curve["kind"] == "peer"]


def _curves(results: Results, metric: str) -> dict[str, Any]:
    return {name: curve for name, curve in results["curves"].items() if metric in curve}


def _xy(curve: dict[str, Any], metric: str) -> tuple[Floats, Floats]:
    return np.array(curve["bpp"]), METRICS[metric].axis(np.array(curve[metric]))


def _lossless_table(peers: dict[str, Any]) -> str:
    coded = {name: curve for name, curve in peers.items() if curve["lossless"]}
    first = coded.get("png", next(iter(coded.values())))
    rows = [
        [
            curve["label"],
            f"{curve['bpp'][0]:.3f}",
            f"{100 * curve['bpp'][0] / first['bpp'][0]:.1f}",
            "yes" if curve["exact"][0] == 1 else "NO",
        ]
        for curve in sorted(coded.values(), key=lambda curve: curve["bpp"][0])
    ]
    return _table(["", "bits per pixel", f"% of {first['label']}", "bit for bit"], rows)


def _cost_table(results: Results) -> str:
    costs, timed = results["costs"], results["timed"]
    reference = "jpeg" if "jpeg" in costs else next(iter(costs))
    rows = [
        [results["curves"][name]["label"], *(_ratio(cost[key], costs[reference][key]) for key in cost)]
        for name, cost in costs.items()
    ]
    return (
        f"As ratios to {results['curves'][reference]['label']} in the same run, on {timed['threads']} "
        f"core{'s' * (timed['threads'] > 1)}, {timed['pictures']} pictures, each peer at the setting nearest to "
        f"{timed['bpp']} bits per pixel. Memory is the peak of a process that does nothing else, Python included.\n\n"
        + _table(["", "encoding time", "decoding time", "encoder's memory", "decoder's memory"], rows)
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "model")


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:+.1f}"


def _ratio(value: float | None, reference: float | None) -> str:
    return "" if value is None or reference is None else f"{value / reference:.3g}"


def _finite(value: Any) -> Any:
    """With None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
