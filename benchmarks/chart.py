"""The speed table as a PNG: how many times llama.cpp's speed, and how much of what one core can read."""

import math
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import number
from benchmarks.targets import Result, percent

# Okabe and Ito's colours, which everybody can tell apart.
_OURS, _BASE, _WANTED, _INK, _FAINT = "#0072B2", "#999999", "#D55E00", "#222222", "#dddddd"
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _TOP = 1280, 400, 230, 16, 14, 64
_TEXT, _SMALL, _TITLE = 16, 13, 20


_TIMES = "times llama.cpp RPC (the last row: times its own speed without speculation)"


def draw(results: list[Result], caption: str, path: Path, what: str = _TIMES, base: str = "llama.cpp RPC") -> None:
    """Write the chart, with `what` as its title; raises OSError if it can't be written. Needs Pillow, of the extra
    `bench`."""
    from PIL import Image, ImageDraw, ImageFont

    times = [r for r in results if r.times is not None]
    shares = [r for r in results if r.share is not None]
    height = _panel_height(len(times), 1) + _panel_height(len(shares), 2) + 50
    image = Image.new("RGB", (_WIDTH, height), "white")
    pen = ImageDraw.Draw(image)
    fonts = {size: ImageFont.load_default(size) for size in (_TEXT, _SMALL, _TITLE)}

    def write(at: tuple[float, float], text: str, size: int = _TEXT, anchor: str = "lm", color: str = _INK) -> None:
        pen.text(at, text, fill=color, font=fonts[size], anchor=anchor)

    y = 0
    if times:
        write((_LEFT, 24), what, _TITLE)
        rows = [(r.target.title, [(r.times, _OURS, _rates(r))], r.target.times) for r in times]
        y = _panel(pen, write, rows, 0, lambda value: f"{value:g} x")
    if shares:
        write((_LEFT, y + 24), "weights read a second, of what one core reads", _TITLE)
        rows = [
            (r.target.title, [(r.share, _OURS, f"edgellm {percent(r.share)}"),
                              (r.base_share or 0.0, _BASE, f"{base} {percent(r.base_share)}")], r.target.share)
            for r in shares
        ]  # fmt: skip
        y = _panel(pen, write, rows, y, percent, most=1.0)
    pen.line([(20, height - 38), (20, height - 14)], fill=_WANTED, width=3)
    write((30, height - 26), f"to be reached.   {caption}", _SMALL)
    image.save(path)


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to just over `most`, about five."""
    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10, 20, 25, 50, 100, 1000, 10000) if most / s <= 5.5)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _rates(result: Result) -> str:
    unit = "GB/s" if result.target.measure == "bytes" else "tok/s"
    return f"{number(result.ours)} against {number(result.base)} {unit}"


def _panel_height(rows: int, bars: int) -> int:
    return _TOP + rows * (bars * _BAR + _GAP) + 20 if rows else 0


def _panel(pen, write: Callable, rows: list, top: int, label: Callable[[float], str], most: float = 0.0) -> int:
    """Bars of rows (title, [(value, colour, text)], what is to be reached or None) from `top` down; returns where it
    ends."""
    values = [v for _, bars, wanted in rows for v in (*(b[0] for b in bars), wanted or 0.0)]
    scale_at = ticks(max(most, *values))
    width, bottom = _WIDTH - _LEFT - _RIGHT, top + _panel_height(len(rows), len(rows[0][1])) - 20

    def x(value: float) -> float:
        return _LEFT + width * value / scale_at[-1]

    for value in scale_at:
        pen.line([(x(value), top + _TOP - 4), (x(value), bottom - _GAP + 4)], fill=_FAINT)
        write((x(value), top + _TOP - 14), label(value), _SMALL, "mm")
    y = top + _TOP
    for title, bars, wanted in rows:
        write((_LEFT - 12, y + len(bars) * _BAR / 2), title, anchor="rm")
        for i, (value, color, text) in enumerate(bars):
            pen.rectangle([(_LEFT, y + i * _BAR), (x(value), y + (i + 1) * _BAR - 2)], fill=color)
            write((max(x(value), x(wanted or 0.0) if i == 0 else 0.0) + 8, y + i * _BAR + _BAR / 2), text, _SMALL)
        if wanted:
            pen.line([(x(wanted), y - 3), (x(wanted), y + len(bars) * _BAR + 1)], fill=_WANTED, width=3)
        y += len(bars) * _BAR + _GAP
    return bottom + 20
