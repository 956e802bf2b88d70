"""Tables of measurements: rows as Markdown, the spread of a column, and the machine that they are from."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def format_rows(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in line.values()] for line in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The smallest, the median and the largest of the values, as columns of a table."""
    parts: dict[str, Callable] = {"min": min, "median": statistics.median, "max": max}
    return {f"{name}_{part}": round(function(values), 3) for part, function in parts.items()}


def machine(device: torch.device) -> str:
    """The device's name, the threads and torch's version, for the head of a table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    """The CPU's model as Linux names it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({len(models)} cores)" if models else "CPU"
