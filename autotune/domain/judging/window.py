"""When the window of a load level begins and ends, judged from its progress about once a second.

::

    Warming ──steady, or too long──> Measuring ──precise, or budget spent──> Finishing ──> Over
        └────────────────────────────────┴──over-saturated───────────────────────────────────^

Load goes on while the window's last requests finish: on an emptying engine they would be served too well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.domain.judging.sla import BoundSet, Sla, keeping_requests
from autotune.domain.load.progress import Progress, Steer
from autotune.domain.measuring.measurement import WindowEnd
from autotune.domain.measuring.power import Window
from autotune.domain.measuring.queueing import SAMPLES, TELLING_GROWTH, in_flight, queue_growth, sample_times
from autotune.domain.measuring.stats import BLOCKS, proportion_interval, ratio_interval, trend

Floats = NDArray[np.float64]

SURE_GROWTH = 3.0
"""Where the question is put every second, a queue must have outgrown chance by so many deviations."""
NO_GROWTH = 1.0
"""A window whose queue outgrew chance by more than this is not ended for being precise: time will tell."""
FEW = 5
"""Requests that must have come due in the first quarter before a load can be called steady or too high."""
TURNED_OVER = 0.95
"""Share of them that must have ended, each within half the time so far."""
LONGEST_TAIL_S = 15.0
"""Load goes on no longer than this after a window; what is not finished by then ends without load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRules:
    """What a window must achieve and may cost; seconds.

    ``precision`` is the half-width of the 90 % interval of throughput as a share of it. ``rate_rps`` is None
    in closed loop, where nothing can over-saturate; ``dispersion`` is that of the arrivals.
    """

    slas: tuple[Sla, ...]
    rate_rps: float | None
    dispersion: float
    warmup_s: float
    longest_warmup_s: float
    shortest_s: float
    longest_s: float
    precision: float

    @property
    def longest_run_s(self) -> float:
        """From the first request due to the last, at most."""
        return self.longest_warmup_s + self.longest_s + LONGEST_TAIL_S


@dataclass(frozen=True, slots=True)
class Warming:
    """Load is on and nothing counts yet."""

    name = "warming up"
    steer = Steer.GO_ON


@dataclass(frozen=True, slots=True)
class Measuring:
    """The window is open; ``steady`` is false where it was opened because warming up took too long."""

    start_s: float
    steady: bool

    name = "measuring"
    steer = Steer.GO_ON


@dataclass(frozen=True, slots=True)
class Finishing:
    """The window is over, and some of its requests are not."""

    window: Window
    end: WindowEnd
    steady: bool

    name = "finishing"
    steer = Steer.GO_ON


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more is to be sent; ``complete`` when every request of the window ended."""

    window: Window
    end: WindowEnd
    steady: bool
    complete: bool

    name = "emptying"

    @property
    def steer(self) -> Steer:
        """Whether what is in flight is still wanted."""
        return Steer.CUT if self.complete or self.end is WindowEnd.OVERSATURATED else Steer.DRAIN


Stage = Warming | Measuring | Finishing | Over


def advance(stage: Stage, progress: Progress, rules: WindowRules) -> Stage:
    """Return the stage that a level is in by now."""
    match stage:
        case Warming():
            return _warming(progress, rules)
        case Measuring():
            return _measuring(stage, progress, rules)
        case Finishing():
            return _finishing(stage, progress)
        case Over():
            return stage


def closed_by_force(stage: Stage, progress: Progress) -> Over | None:
    """How a level stands whose load ended by itself; None where its window had not begun."""
    match stage:
        case Measuring(start_s, steady) if progress.at_s > start_s:
            return Over(Window(start_s, progress.at_s), WindowEnd.BUDGET, steady, complete=True)
        case Finishing(window, end, steady):
            return Over(window, end, steady, complete=True)
        case Over():
            return stage
        case _:
            return None


def _warming(progress: Progress, rules: WindowRules) -> Stage:
    elapsed_s = progress.at_s - progress.started_s
    if elapsed_s < rules.warmup_s:
        return Warming()
    turned_over = _has_turned_over(progress, elapsed_s)
    since = Window(progress.started_s + elapsed_s / 2, progress.at_s)
    if turned_over and _shows_oversaturation(progress, since, _growth(progress, since, rules), rules):
        return Over(since, WindowEnd.OVERSATURATED, steady=False, complete=False)
    steady = turned_over and _has_no_trend(progress, since)
    if steady or elapsed_s >= rules.longest_warmup_s:
        return Measuring(progress.at_s, steady)
    return Warming()


def _measuring(stage: Measuring, progress: Progress, rules: WindowRules) -> Stage:
    if progress.at_s <= stage.start_s:
        return stage
    window = Window(stage.start_s, progress.at_s)
    growth = _growth(progress, window, rules)
    if _shows_oversaturation(progress, window, growth, rules):
        return Over(window, WindowEnd.OVERSATURATED, stage.steady, complete=False)
    if window.length_s >= rules.longest_s:
        return Finishing(window, WindowEnd.BUDGET, stage.steady)
    if window.length_s >= rules.shortest_s and growth <= NO_GROWTH and _is_precise(progress, window, rules):
        return Finishing(window, WindowEnd.PRECISE, stage.steady)
    return stage


def _finishing(stage: Finishing, progress: Progress) -> Stage:
    window = stage.window
    due, ended = progress.due_s, progress.ended.due_s
    open_requests = window.holds(due).sum() - window.holds(ended).sum()
    if open_requests and progress.at_s < window.end_s + LONGEST_TAIL_S:
        return stage
    return Over(window, stage.end, stage.steady, complete=not open_requests)


def _has_turned_over(progress: Progress, elapsed_s: float) -> bool:
    """Whether the first requests are through: until then a queue that fills looks like one that grows.

    Asked of those that came due first, and not of those that ended first: these are the short ones.
    """
    first_until_s = progress.started_s + elapsed_s / 4
    due = int((progress.due_s < first_until_s).sum())
    ended = progress.ended
    quick = (ended.due_s < first_until_s) & (ended.finished_s - ended.due_s <= elapsed_s / 2)
    return due >= FEW and int(quick.sum()) >= TURNED_OVER * due


def _has_no_trend(progress: Progress, since: Window) -> bool:
    """Whether neither the queue nor the throughput moves."""
    ended = progress.ended
    queue = in_flight(progress.due_s, ended.finished_s, sample_times(since))
    tokens = since.sums(ended.finished_s, ended.output_tokens.astype(np.float64), blocks=BLOCKS)
    return not trend(queue).significant and not trend(tokens).significant


def _growth(progress: Progress, window: Window, rules: WindowRules) -> float:
    """How far the queue outgrew chance; 0 in closed loop."""
    if rules.rate_rps is None:
        return 0.0
    queue = in_flight(progress.due_s, progress.ended.finished_s, sample_times(window))
    return queue_growth(queue, window, rules.rate_rps, dispersion=rules.dispersion)


def _shows_oversaturation(progress: Progress, window: Window, growth: float, rules: WindowRules) -> bool:
    """Whether the queue, or the wait for the first token, rose as it does only beyond capacity.

    A burst looks the same at first: nothing is said of less than half the shortest window.
    """
    if window.length_s < rules.shortest_s / 2:
        return False
    if growth > SURE_GROWTH:
        queue = in_flight(progress.due_s, progress.ended.finished_s, sample_times(window))
        return trend(queue).significant
    return growth > TELLING_GROWTH and _ttft_rises(progress, window)


def _ttft_rises(progress: Progress, window: Window) -> bool:
    ended = progress.ended
    order = np.argsort(ended.due_s)
    ttft_s = ended.ttft_s[order][window.holds(ended.due_s[order])]
    ttft_s = ttft_s[np.isfinite(ttft_s)]
    if len(ttft_s) < SAMPLES:
        return False
    rising = trend(ttft_s)
    return rising.significant and rising.slope > 0


def _is_precise(progress: Progress, window: Window, rules: WindowRules) -> bool:
    """Whether throughput is known well enough, and each SLA is shown to be kept or to be missed."""
    ended = progress.ended
    offered = window.sums(ended.due_s, blocks=BLOCKS)
    if not offered.any():
        return False
    doomed = bool(rules.slas)
    for sla in rules.slas:
        shown = [_shown(progress, window, bounds, share, offered) for bounds, share in sla.goals()]
        if False not in shown and None in shown:
            return False
        doomed = doomed and False in shown
    if doomed:
        # No user of this level's figures is left: precision would buy nothing.
        return True
    tokens = window.sums(ended.due_s, ended.output_tokens.astype(np.float64), blocks=BLOCKS)
    if not tokens.any():
        return False
    interval = ratio_interval(tokens, np.full(BLOCKS, window.length_s / BLOCKS))
    wanted = 2 * rules.precision * float(tokens.sum()) / window.length_s
    return interval.high - interval.low <= wanted


def _shown(
    progress: Progress, window: Window, bounds: BoundSet, share: float, offered: Floats
) -> bool | None:
    """Whether a share of requests keeps some bounds, as far as its interval shows; None where it does not."""
    ended = progress.ended
    kept = window.sums(ended.due_s[keeping_requests(ended, bounds)], blocks=BLOCKS)
    interval = proportion_interval(kept, offered)
    if interval.low >= share:
        return True
    return False if interval.high < share else None
