"""The picture: who is on the front, where SLAs lie, and what figures say of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import curve, launch_record, study_spec
from hypothesis import given
from hypothesis import strategies as st
from synthetic_measurements import steady_power

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.judging.scoring import SlaVerdict, score_level
from autotune.domain.measuring.digest import digest
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.picture import goldilocks, pareto_front, points_of, regions
from autotune.domain.recommending.recommendation import Candidate, recommend
from autotune.domain.studies.records import Purpose, TrialRow, TrialState
from autotune.web import charts, insight_charts

TABLE = AcceleratorTable(accelerators=())
STUDY = study_spec()
XY = st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e9))


def candidate(number: int = 1, **curve_of: float) -> Candidate:
    row = TrialRow(
        study="small",
        number=number,
        purpose=Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=EngineConfig(engine="fake", max_num_seqs=number),
    )
    return Candidate(
        row=row,
        launch=launch_record(row, curve(**curve_of)),
        final=launch_record(replace(row, number=number + 100), curve((4.0,))),
    )


@given(st.lists(XY, max_size=30), st.booleans())
def test_nothing_beats_the_front_and_the_front_beats_the_rest(
    points: list[tuple[float, float]], lower: bool
) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        better_y = one[1] <= other[1] if lower else one[1] >= other[1]
        return one[0] >= other[0] and better_y and one != other

    front = pareto_front(points, lower_is_better=lower)
    for index, point in enumerate(points):
        beaten = any(beats(other, point) for other in points)
        assert (index in front) == (not beaten and points.index(point) == index) or point in [
            points[i] for i in front
        ]
        if index in front:
            assert not beaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_goldilocks_lies_between_the_ends() -> None:
    assert goldilocks([(1, 10), (5, 8), (9, 1)]) == 1
    assert goldilocks([(1, 10), (9, 1)]) is None
    assert goldilocks([(1, 1), (2, 5), (8, 2)], lower_is_better=True) == 1


def test_points_carry_watts_devices_and_verdicts_with_intervals() -> None:
    points = points_of(candidate(), STUDY, TABLE)
    assert [p.final for p in points] == [False, False, True]
    first = points[0]
    assert first.interactivity.value == pytest.approx(100)
    assert first.throughput.value == pytest.approx(20, rel=0.02)
    assert first.per_mw is not None
    assert first.per_mw.value == pytest.approx(20 / 100 * 1e6, rel=0.02)
    assert first.per_mw.interval.low <= first.per_mw.value <= first.per_mw.interval.high
    assert first.cost is None
    assert first.verdicts["fast"] is SlaVerdict.MET


def test_cost_needs_a_price() -> None:
    priced = study_spec(power={"prices": {"accelerator_hour": 3.6}})
    point = points_of(candidate(), priced, TABLE)[0]
    assert point.cost is not None
    assert point.cost.value == pytest.approx(3.6 / 3600 / point.throughput.value * 1e6)


def test_regions_begin_at_the_tightest_token_rate() -> None:
    study = study_spec(
        slas=[
            {"name": "a", "slos": {"tpot": "20ms", "interactivity": 40}},
            {"name": "b", "slos": {"ttft": "1s"}},
        ]
    )
    assert [(r.sla, r.least) for r in regions(study.slas)] == [("a", 50), ("b", 0)]


def test_digests_score_as_the_levels_they_are_of() -> None:
    for level in curve((3.0, 5.0, 9.0)):
        for sla in STUDY.slas:
            assert score_level(digest(level), sla) == score_level(level, sla)


def test_a_digested_candidate_recommends_the_same_without_raw_records() -> None:
    whole = candidate()
    lean = whole.digested()
    assert lean.launch.curve == ()
    for sla in STUDY.slas:
        one, other = (recommend(STUDY, sla, [c]).best for c in (whole, lean))
        assert one is not None
        assert other is not None
        assert (one.figures, one.capacity_rps) == (other.figures, other.capacity_rps)


@given(st.integers(0, 2**32 - 1))
def test_blocks_are_those_of_the_windows_histogram(seed: int) -> None:
    level = curve((5.0,))[0]
    random = np.random.default_rng(seed)
    due = np.sort(random.choice([*np.linspace(-1, 31, 97), 0.0, 30.0, 15.0], len(level.requests)))
    moved = replace(level, requests=replace(level.requests, due_s=due))
    assert (digest(moved).offered == level.window.sums(due, blocks=20)).all()


def drawn(**asked: object) -> charts.Chart:
    found = candidate()
    series = charts.Series(
        trial=1,
        config=found.row.config,
        label="<b>max_num_seqs=1",
        link="/studies/small/trials/1",
        points=points_of(found, STUDY, TABLE),
    )
    options = {"measure": charts.Measure.PER_MW, "colour": charts.Colour.CONFIGURATION} | asked
    figure = charts.picture([series], regions(STUDY.slas), winners={"fast": 1}, **options)  # type: ignore[arg-type]
    json.dumps(figure, allow_nan=False)
    return figure


def test_no_line_joins_the_levels_of_a_final() -> None:
    found = candidate()
    searched = tuple(point for point in points_of(found, STUDY, TABLE) if not point.final)
    finals = tuple(replace(point, final=True) for point in searched[:2])
    series = charts.Series(trial=1, config=found.row.config, label="", link="/", points=(*searched, *finals))
    options = {"measure": charts.Measure.PER_MW, "colour": charts.Colour.CONFIGURATION}
    figure = charts.picture([series], regions(STUDY.slas), winners={}, **options)  # type: ignore[arg-type]
    joined = [x is not None for x in figure["data"][0]["x"]]
    assert joined == [True] * len(searched) + [False, True] * len(finals)


def test_figures_say_what_points_are_and_open_their_trial() -> None:
    figure = drawn(remark="watts are a model's estimate")
    trace = figure["data"][0]
    assert set(trace["customdata"]) == {"/studies/small/trials/1"}
    assert "&lt;b&gt;max_num_seqs=1" in trace["text"][0]
    assert "<b>max" not in trace["text"][0]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [0, 0]
    assert any("estimate" in note["text"] for note in figure["layout"]["annotations"])
    assert [t["name"] for t in figure["data"]][1:] == ["Pareto front", "★ recommended for fast"]


def test_points_that_miss_the_sla_in_focus_are_hollow() -> None:
    overloaded = candidate(capacity_rps=4.5)
    points = points_of(overloaded, STUDY, TABLE)
    series = charts.Series(trial=1, config=overloaded.row.config, label="", link="/", points=points)
    figure = charts.picture(
        [series],
        [],
        measure=charts.Measure.PER_DEVICE,
        colour=charts.Colour.ENGINE,
        focus="fast",
    )
    marks = [m for m in figure["data"][0]["marker"]["symbol"] if m]
    assert sorted(marks) == ["circle", "circle-open", "diamond"]


def test_a_study_without_valid_watts_has_no_point_per_megawatt() -> None:
    found = candidate()
    nothing = steady_power(found.curve[0].window, devices=0, basis=PowerBasis.ESTIMATED)
    unmetered = replace(found.launch, curve=tuple(replace(m, power=nothing) for m in found.curve))
    points = points_of(Candidate(row=found.row, launch=unmetered), STUDY, TABLE)
    assert [p.per_mw for p in points] == [None, None]
    assert all(p.per_device.value > 0 for p in points)


def test_predictions_are_drawn_against_what_was_measured() -> None:
    base = candidate().row
    rows = [
        replace(base, predicted={"fast": 20.0}, objectives={"fast": 25.0}),
        replace(base, number=2, predicted={}, objectives={"fast": 1.0}),
    ]
    links = {row.number: f"/{row.number}" for row in rows}
    figure = insight_charts.predictions(rows, links)
    assert figure is not None
    points, line = figure["data"]
    assert (points["x"], points["y"], points["customdata"]) == ([20.0], [25.0], ["/1"])
    assert line["x"] == [0, 25.0]
    assert insight_charts.predictions(rows[1:], links) is None
