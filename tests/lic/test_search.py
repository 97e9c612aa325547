"""The search for a quality that meets a target."""

import math

import pytest

from lic.search import quality_for


@pytest.mark.parametrize("goal", [150.0, 800.0, 9000.0, 90_000.0])
@pytest.mark.parametrize("jitter", [0.0, 0.01])
def test_a_goal_is_met_and_never_exceeded(goal, jitter):
    """Even where neighbouring qualities' sizes go up and down by a per cent."""
    tried = []

    def size(quality):
        tried.append(quality)
        return 100 * math.exp(0.07 * quality) * (1 + jitter * math.sin(1e4 * quality))

    quality = quality_for(size, goal, 0.01 * goal, 0.05)
    count = len(tried)
    assert quality is not None
    assert size(quality) <= goal
    assert size(quality) >= 0.99 * goal
    assert all(0 <= q <= 100 for q in tried)
    assert count <= 25


def test_a_quality_nearby_may_do_better():
    def size(quality):
        return 990 + quality / 100 if 40.08 < quality < 40.12 else 900 + (quality > 40) * 200 + quality / 100

    assert size(quality_for(size, 1000, 15, 0.5)) > 985


def test_out_of_reach():
    assert quality_for(lambda quality: 100 + quality, 50, 1, 1.0) is None
    assert quality_for(lambda quality: quality, 500, 1, 1.0) == 100
