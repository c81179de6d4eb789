"""What a configuration is forecast to do under a load: latency and throughput, from the steps of a roofline.

Requests are taken as alike, each followed by the next (a closed loop); Little's law ties what is in flight to
what is served per second. Nothing here was measured: a forecast ranks configurations before any is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.hardware.accelerators import Performance
from autotune.domain.models.memory import memory_needs
from autotune.domain.models.model import ModelShape
from autotune.domain.search.roofline import EFFICIENCY, Efficiency, Step, Worker, worker

_BISECTIONS = 30
_FEWEST = 1e-3
"""Sequences that decode at once, on average, at the least that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests that are alike: tokens of prompt and output, and how many are in flight, waiting ones too."""

    prompt_tokens: float
    output_tokens: float
    concurrency: float

    @property
    def mean_context(self) -> float:
        """Tokens of a sequence half-way through its output."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Latency in seconds, output tokens per second of all ``devices``, and sequences that decode at once.

    ``memory_share`` and ``compute_share`` are what a device's memory and matrix units do of their peaks.
    """

    ttft_s: float
    tpot_s: float
    output_tok_s: float
    devices: int
    decoding: float
    memory_share: float
    compute_share: float

    @property
    def output_tok_s_per_device(self) -> float:
        """Output tokens per second of one device."""
        return self.output_tok_s / self.devices


@dataclass(frozen=True, slots=True)
class _Pool:
    """Workers alike, and how many sequences fit into all of them."""

    worker: Worker
    workers: int
    most_sequences: float


class Deployment:
    """A configuration of a model on accelerators, ready to be asked for many loads."""

    def __init__(
        self, model: ModelShape, chip: Performance, config: EngineConfig, efficiency: Efficiency = EFFICIENCY
    ) -> None:
        self._efficiency = efficiency
        self._chip = chip
        self._model = model
        self._needs = memory_needs(config, model, int(chip.memory_gb * 1e9))
        self._shapes: dict[str, EngineConfig | Pool] = {**config.pools} or {"": config}
        self._workers = {
            name: worker(model, chip, config, shape, efficiency) for name, shape in self._shapes.items()
        }
        self._devices = config.devices
        speculates = config.speculation not in {None, "none"}
        self._drafted = (config.speculative_tokens or efficiency.drafted) if speculates else 0

    def probability_of_fitting(self, tokens: float) -> float:
        """Chance that weights and a sequence of so many tokens fit on the devices of every pool."""
        return prod(need.probability_of_fitting(tokens) for need in self._needs.values())

    def forecast(self, traffic: Traffic) -> Forecast:
        """What it does under a load; where not even one sequence fits it is forecast with one at a time."""
        if "decode" in self._workers:
            return self._pooled(traffic)
        return self._together(traffic)

    def _pool(self, name: str, traffic: Traffic) -> _Pool:
        shape, need = self._shapes[name], self._needs[name]
        workers = getattr(shape, "workers", None) or 1
        most = max(need.concurrency(traffic.mean_context), 1.0)
        if shape.max_num_seqs:
            most = min(most, float(shape.max_num_seqs * (shape.data_parallel or 1) * workers))
        return _Pool(self._workers[name], workers, most)

    def _decode(self, pool: _Pool, decoding: float, traffic: Traffic) -> tuple[float, Step]:
        """Seconds per output token of one sequence, and the step, with so many decoding on all workers."""
        each = decoding / pool.workers
        step = pool.worker.decode(each, traffic.mean_context, 1 + self._drafted)
        if not self._drafted:
            return step.seconds, step
        chance = self._efficiency.acceptance
        accepted = (1 - chance ** (self._drafted + 1)) / (1 - chance)
        # A draft is a layer and the head once more, each time for the sequences alone.
        draft_s = self._drafted * pool.worker.decode(each, traffic.mean_context).seconds / pool.worker.layers
        return (step.seconds + draft_s) / accepted, step

    def _prefill(self, pool: _Pool, traffic: Traffic) -> Step:
        return pool.worker.prefill(max(traffic.prompt_tokens, 1.0))

    def _together(self, traffic: Traffic) -> Forecast:
        """One engine does both: prompts are read between the steps that decode, which wait for it."""
        pool = self._pool("", traffic)
        prompt = self._prefill(pool, traffic)
        # Every replica reads a prompt in that time, and every stage of the pipeline is at another one.
        prompt_s = prompt.seconds / (pool.worker.replicas * pool.worker.stages * pool.workers)

        def tpot_s(decoding: float) -> float:
            return self._decode(pool, decoding, traffic)[0] + decoding * prompt_s / traffic.output_tokens

        def in_flight(decoding: float) -> float:
            return decoding + self._rate(decoding, tpot_s, traffic) * prompt.seconds

        decoding = _largest(in_flight, traffic.concurrency, min(traffic.concurrency, pool.most_sequences))
        return self._seen(decoding, tpot_s, traffic, least_ttft_s=prompt.seconds, pool=pool, prompt=prompt)

    def _pooled(self, traffic: Traffic) -> Forecast:
        """Prompts are read in a pool of its own, and go to decoding by what either pool can do."""
        reading, pool = self._pool("prefill", traffic), self._pool("decode", traffic)
        prompt = self._prefill(reading, traffic)
        most_rate = reading.workers * reading.worker.replicas * reading.worker.stages / prompt.seconds
        moved_bytes = pool.worker.layout.sequence_bytes(traffic.prompt_tokens)
        moving_s = moved_bytes / (self._chip.network_gb_s * 1e9 * self._efficiency.link)
        least_ttft_s = prompt.seconds + moving_s
        tpot_s = partial(self._tpot_s, pool, traffic)

        def in_flight(decoding: float) -> float:
            return decoding + self._rate(decoding, tpot_s, traffic) * least_ttft_s

        def rate(decoding: float) -> float:
            return self._rate(decoding, tpot_s, traffic)

        decoding = _largest(in_flight, traffic.concurrency, min(traffic.concurrency, pool.most_sequences))
        decoding = _largest(rate, most_rate, decoding)
        return self._seen(decoding, tpot_s, traffic, least_ttft_s=least_ttft_s, pool=pool, prompt=prompt)

    def _tpot_s(self, pool: _Pool, traffic: Traffic, decoding: float) -> float:
        return self._decode(pool, decoding, traffic)[0]

    @staticmethod
    def _rate(decoding: float, tpot_s: Callable[[float], float], traffic: Traffic) -> float:
        """Requests per second while so many decode (Little)."""
        return decoding / (tpot_s(decoding) * traffic.output_tokens)

    def _seen(
        self,
        decoding: float,
        tpot_s: Callable[[float], float],
        traffic: Traffic,
        *,
        least_ttft_s: float,
        pool: _Pool,
        prompt: Step,
    ) -> Forecast:
        rate = self._rate(decoding, tpot_s, traffic)
        waiting_s = max(traffic.concurrency - decoding, 0.0) / rate
        seconds, step = self._decode(pool, decoding, traffic)
        decoded_s = seconds / tpot_s(decoding)
        prompt_share = rate * prompt.seconds / (pool.worker.replicas * pool.worker.stages * pool.workers)
        prompt_share = min(prompt_share, 1.0) / prompt.seconds
        decode_share = decoded_s * pool.worker.stages / step.seconds
        return Forecast(
            ttft_s=max(waiting_s, least_ttft_s),
            tpot_s=tpot_s(decoding),
            output_tok_s=rate * traffic.output_tokens,
            devices=self._devices,
            decoding=decoding,
            memory_share=min(step.memory_s * decode_share + prompt.memory_s * prompt_share, 1.0),
            compute_share=min(step.compute_s * decode_share + prompt.compute_s * prompt_share, 1.0),
        )


def _largest(growing: Callable[[float], float], bound: float, most: float) -> float:
    """The largest value up to ``most`` at which a growing function stays within its bound."""
    if growing(most) <= bound:
        return most
    low, high = min(_FEWEST, most), most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if growing(middle) <= bound else (low, middle)
    return low
