"""The quality that meets a target: a size, or a PSNR."""

from __future__ import annotations

from collections.abc import Callable

START = 50.0
SLOPE = 0.05  # what a unit of quality adds to the logarithm of a size, roughly; and, times 8, to decibels
NARROWEST = 0.005  # of an interval of qualities, beyond which no search makes sense
NEIGHBOURS = 0.05, -0.05, 0.1, -0.1, 0.15, -0.15, 0.2, -0.2  # qualities away


def quality_for(measure: Callable[[float], float], goal: float, tolerance: float, slope: float) -> float | None:
    """The quality 0..100 at which `measure`, which rises with it by about `slope` a unit, is in goal - tolerance..goal,
    or as close below as can be. None where even quality 0 is above the goal.

    The secant method until two qualities are known to hold the answer between them, then false position.
    """
    low: tuple[float, float] | None = None  # the largest quality known to be below the goal, and its measure
    best: tuple[float, float] | None = None  # the measure that is nearest below it (small pictures jump), its quality
    high: tuple[float, float] | None = None  # the smallest known to be above
    aim = goal - tolerance / 2
    quality, value = START, measure(START)
    while True:
        if value <= goal:
            low = quality, value
            best = max(best or (value, quality), (value, quality))
            if value >= goal - tolerance or quality == 100:
                return quality
        else:
            high = quality, value
            if quality == 0:
                return None
        if low and high and best:
            width = high[0] - low[0]
            if width < NARROWEST:
                # A step in quantisation can move sizes either way: a quality nearby may do better.
                for away in NEIGHBOURS:
                    if best[0] < goal - tolerance and 0 <= quality + away <= 100:
                        value = measure(quality + away)
                        best = max(best, (value, quality + away)) if value <= goal else best
                return best[1]
            share = (aim - low[1]) / (high[1] - low[1])
            following = low[0] + min(max(share, 0.1), 0.9) * width
        else:
            following = min(max(quality + (aim - value) / slope, 0.0), 100.0)
        before, quality = (quality, value), following
        value = measure(quality)
        slope = max((value - before[1]) / (quality - before[0]), slope / 4)
