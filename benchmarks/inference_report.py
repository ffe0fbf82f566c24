"""What `inference.py` says: a number for each goal and network, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_command import limits
from rich.console import Console
from rich.table import Table

GOALS = {
    "dense_over_window_of_arithmetic": 0.9,
    "dense_over_window_fp32": 250,
    "dense_fraction_of_ceiling": 0.6,
    "strided_over_dense": 5,
    "predict_fraction_of_network": 0.8,
}
"""What each number should be on a CPU, at least."""
Found = Mapping[str, Any]


def headlines(found: Found) -> dict[str, Any]:
    """One number for each network, in the setting in which its dense form is fastest.

    The share of the ceiling is that of bfloat16, unless only float32 was timed.
    """
    keys = ("dense_over_window", "dense_over_window_of_arithmetic", "strided_over_dense", "dense_fraction_of_ceiling")
    lines: dict[str, Any] = {"fastest_setting": {}} | {key: {} for key in keys}
    for network, settings in found["per_setting"].items():
        timed = {name: s for name, s in settings.items() if "dense" in s["seconds_per_slice"]}
        if not timed:
            continue
        ranked = sorted(timed, key=lambda name: timed[name]["seconds_per_slice"]["dense"])
        lines["fastest_setting"][network] = ranked[0]
        for key in keys:
            halves = [name for name in ranked if name.startswith("bf16")]
            setting = halves[0] if halves and key == "dense_fraction_of_ceiling" else ranked[0]
            if key in timed[setting]:
                lines[key][network] = timed[setting][key]
    for key in ("dense_over_window_fp32", "dense_over_window_fp32_channels_last"):
        lines[key] = {network: numbers[key] for network, numbers in found["fp32_contiguous"].items()}
    key = "predict_fraction_of_network"
    lines[key] = {network: numbers[key] for network, numbers in found["predict"].items()}
    for network, numbers in found["predict"].items():
        ceiling = found["ceiling"].get(numbers["setting"].split("_")[0])
        if ceiling and "device_seconds" in numbers:
            lines.setdefault("volume_limits_seconds", {})[network] = limits(numbers, max(ceiling.values()))
    return lines


def show(found: Found) -> None:
    """Print what was measured on one device."""
    console = _console()
    title = f"{found['device']}: megapixels/s and their ratios"
    columns = ("window", "batch", "strided", "dense", "dense/window", "of arithmetic", "strided/dense", "of ceiling")
    table = Table("network", "setting", *columns, title=title)
    for network, settings in found["per_setting"].items():
        for setting, numbers in settings.items():
            table.add_row(network, setting, *_speeds(numbers))
    if table.row_count:
        console.print(table)
    for precision, sizes in found["ceiling"].items():
        speeds = ", ".join(f"{flops / 1e9:.0f} at {size}" for size, flops in sizes.items())
        console.print(f"ceiling, {precision} matrix products: GFLOP/s {speeds}")
    for network, work in found["operations"].items():
        kinds = ", ".join(f"{kind} {work[kind] / 1e9:.1f}" for kind in ("window", "strided", "dense"))
        console.print(f"{network}, GFLOP for a slice: {kinds}; window/dense {work['window_over_dense']:.1f}")
    for network, numbers in found["fp32_contiguous"].items():
        console.print(
            f"{network}, dense {numbers['setting']} over eager fp32 windows: "
            f"{numbers['dense_over_window_fp32']:.0f} contiguous, "
            f"{numbers['dense_over_window_fp32_channels_last']:.0f} channels-last"
        )
    for network, numbers in found["predict"].items():
        console.print(
            f"{network}, predict of {numbers['slices']} slices, {numbers['setting']}: {numbers['seconds']:.1f} s, "
            f"imports {numbers['seconds_of_imports']:.1f} s of it; the bare network "
            f"{numbers['slices'] * numbers['dense_seconds_per_slice']:.1f} s"
        )
        if "device_seconds" in numbers:
            least = found.get("volume_limits_seconds", {}).get(network, {})
            reasons = "".join(f"; {reason} take at least {s:.3f} s" for reason, s in least.items())
            console.print(f"  on the device {numbers['device_seconds']:.3f} s{reasons}")


def show_goals(report: Found) -> None:
    """Print whether the numbers of the CPU reach their goals."""
    table = Table("goal, on the CPU", "at least", "network", "found", "met", title="goals")
    for key, least in GOALS.items():
        numbers = report.get(key) or {"": None}
        for network, number in numbers.items():
            met = "not measured" if number is None else "yes" if number >= least else "no"
            table.add_row(key, f"{least:g}", network, "" if number is None else f"{number:.3g}", met)
    console = _console()
    console.print(table)
    if report["quick"]:
        console.print("quick=true: these numbers say nothing")


def _speeds(numbers: Found) -> list[str]:
    """The cells of one network in one setting; empty where nothing was timed."""
    speeds, batches = numbers["megapixels_per_second"], numbers["window_seconds_per_slice_by_batch"]

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    batch = min(batches, key=lambda name: batches[name]) if batches else ""
    ratios = (
        "dense_over_window",
        "dense_over_window_of_arithmetic",
        "strided_over_dense",
        "dense_fraction_of_ceiling",
    )
    speed = [cell(speeds.get(kind)) for kind in ("window", "strided", "dense")]
    return [speed[0], batch, *speed[1:], *(cell(numbers.get(key)) for key in ratios)]


def _console() -> Console:
    """As wide as the terminal; into a file, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
