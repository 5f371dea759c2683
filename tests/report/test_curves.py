"""Charts and headline numbers of a run."""

from __future__ import annotations

import re

import pytest
from pages import EVALUATIONS

from tats_fast.report.content import charts, headlines
from tats_fast.report.curves import Chart, chart_html, nice_ticks, thin


def test_chart_draws_every_line_within_its_frame_and_skips_single_points():
    lines = {"up": [(0, 1e-5), (10, 2e-5)], "lone": [(0, 3)], "<down>": [(0, 2e-5), (5, 1e-5)]}
    text = chart_html(Chart("a & b", "c", lines, 0.0))
    paths = re.findall(r'class="line[^>]* d="M([^"]+)"', text)
    assert len(paths) == 2
    for path in paths:
        points = [tuple(map(float, pair.split())) for pair in path.split("L")]
        assert all(0 <= x <= 340 and 0 <= y <= 190 for x, y in points)
    assert "a &amp; b" in text and "&lt;down&gt;" in text and "<down>" not in text
    assert chart_html(Chart("t", "", {"lone": [(0, 3)]})) == ""
    flat = chart_html(Chart("t", "", {"flat": [(0, 3), (1, 3)]}))
    assert "nan" not in flat


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.13, 0.88, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 4, [0, 1, 2, 3, 4]),
        (0, 1e-4, [0, 2.5e-5, 5e-5, 7.5e-5, 1e-4]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_thinning_keeps_means():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert all(y == pytest.approx(0.5) for _, y in thinned)


def test_headlines_compare_first_and_last_evaluation():
    numbers = {number.name: number for number in headlines(EVALUATIONS)}
    assert (numbers["Held-out error"].first, numbers["Held-out error"].last) == (1.6, 1.2)
    assert numbers["Held-out error"].steps == (0, 30)
    assert numbers["Motion lift, sampler"].first == numbers["Motion lift, sampler"].last == 1.543
    assert headlines([]) == []


def test_a_mask_ratio_that_stays_needs_no_chart():
    for last, drawn in ((0.9, False), (0.8, True)):
        rows = [{"step": 1, "mask_ratio": 0.9}, {"step": 2, "mask_ratio": last}]
        _, more = charts(rows, [])
        assert any(map(chart_html, more)) == drawn


def test_what_does_not_learn_is_a_number_and_no_line():
    """A line at 5.25 made a gain from 1.0 to 1.2 look flat."""
    rows = [
        {"step": step, "motion_lift_sampler": 1 + step / 50, "motion_lift_motion": 5.25}
        for step in (0, 10)
    ]
    main, _ = charts([], rows)
    (chart,) = [chart for chart in main if chart.title == "Motion lift"]
    assert max(value for points in chart.lines.values() for _, value in points) == 1.2
    assert chart.caption.endswith("The strategy motion has 5.25.")
    main, _ = charts([], [])
    assert not any("strategy motion" in chart.caption for chart in main)
