"""Power of NVIDIA GPUs on other hosts, scraped from their DCGM exporters.

Facts: the exporter's metrics reference and `default-counters.csv`. It takes a snapshot every ``-c``
milliseconds (30000 unless told otherwise) and answers with the last one until the next, without saying when
it was taken. So the scrapes that count are those in which something changed: their spacing is the true sample
period, and an exporter that stalls leaves a gap. They are stamped on our own clock, midway between request
and answer: no remote clock enters, and the moment is off by at most a scrape period and half a round trip.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from autotune.adapters.power.http_reader import TIMEOUT_S, HttpReader
from autotune.adapters.power.nvml import slowdown
from autotune.adapters.power.reading import Reading, Recording, device_power
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import PowerBasis, PowerTrace

PERIOD_S = 0.25
"""Between scrapes; a quarter of the shortest period that exporters are usually run with."""
MOST_GPU_W = 1e5
"""DCGM writes about 1e14 for a value that it has not got; no GPU draws this much."""
OK = 200

# Each by its older name, which the exporter's own files keep, and its newer one.
INSTANT = ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "DCGM_FI_DEV_BOARD_POWER_RAW_WATTS")
USAGE = ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_BOARD_POWER_WATTS")
POWER = INSTANT + USAGE
ENERGY_MJ = ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
"""The exporter writes the second; the parser gives what is declared a counter the first."""
TEMPERATURE = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_TEMP_CELSIUS")
CLOCK = ("DCGM_FI_DEV_SM_CLOCK",)
LIMIT = ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS")
REASONS = ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS")
WANTED = frozenset(POWER + ENERGY_MJ + TEMPERATURE + CLOCK + LIMIT + REASONS)

_Fields = Mapping[str, float]
"""Values of one GPU by the metric's name."""


@dataclass(frozen=True, slots=True)
class _Scrape:
    """What one exporter answered: its GPUs by UUID."""

    at_s: float
    gpus: Mapping[str, _Fields]


_Sample = tuple[_Scrape, ...]
"""One scrape of each exporter."""


class DcgmPowerMeter:
    """PowerMeter on basis ``gpu`` for GPUs that other hosts' exporters (``urls``, with ``/metrics``) tell of.

    What other processes run on a GPU the exporter does not tell: nobody watches for them here. Raises
    InputError for a URL that is none.
    """

    def __init__(
        self, urls: Sequence[str], *, period_s: float = PERIOD_S, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._urls = tuple(urls)
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._readers()

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[_Sample]]:
        """Record for the length of a ``with`` block; raises BenchError for a GPU that nobody tells of."""
        uids = tuple(device.uid for device in devices)
        with ExitStack() as stack:
            readers = [stack.enter_context(reader) for reader in self._readers()]
            sampling = stack.enter_context(
                Sampling(lambda: tuple(_scrape(reader) for reader in readers), self._period_s)
            )
            where = [_exporter_of(uid, sampling.samples()[0]) for uid in uids]
            yield Recording(sampling.samples, lambda samples: self._trace(uids, where, samples))

    def _readers(self) -> list[HttpReader]:
        return [HttpReader(url, timeout_s=self._timeout_s) for url in self._urls]

    def _trace(self, uids: Sequence[str], where: Sequence[int], samples: Sequence[_Sample]) -> PowerTrace:
        exporters = [[sample[index] for sample in samples] for index in range(len(self._urls))]
        metrics = {_power_of(samples[0][index], uid)[0] for uid, index in zip(uids, where, strict=True)}
        refreshes_s = [_refresh_period_s(exporters[index]) for index in set(where)]
        return PowerTrace(
            basis=PowerBasis.GPU,
            source=f"DCGM exporter ({', '.join(sorted(metrics))})",
            period_s=max([self._period_s, *refreshes_s]),
            devices=tuple(
                device_power(uid, _readings(uid, exporters[index]))
                for uid, index in zip(uids, where, strict=True)
            ),
            reserved=tuple(uids),
        )


def _scrape(reader: HttpReader) -> _Scrape:
    """Scrape one exporter; raises BenchError for an answer that is none of an exporter's."""
    answer = reader.get(reader.path)
    if answer.status != OK:
        raise BenchError(
            f"power meter lost: {reader.url} answered with status {answer.status}; "
            "is it the exporter's /metrics?"
        )
    try:
        return _Scrape(answer.at_s, _fields(answer.body.decode()))
    except (ValueError, LookupError) as error:
        raise BenchError(
            f"power meter lost: {reader.url} is not in Prometheus' text format: {answer.body[:60]!r}; "
            "is it the exporter's /metrics?"
        ) from error


def _fields(text: str) -> Mapping[str, _Fields]:
    """Pick the fields that matter here, by GPU; of one cut into MIG instances each tells the whole's."""
    gpus: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in WANTED and "UUID" in sample.labels:
                gpus.setdefault(sample.labels["UUID"], {})[sample.name] = sample.value
    return gpus


def _exporter_of(uid: str, sample: _Sample) -> int:
    """Find which exporter tells of a GPU; raises BenchError where none does."""
    for index, scrape in enumerate(sample):
        if uid in scrape.gpus:
            return index
    told = ", ".join(other for scrape in sample for other in scrape.gpus) or "none"
    raise BenchError(
        f"no DCGM exporter tells of {uid}, only of: {told}; "
        "name the exporter of its host, or have it export this GPU (its option -d)"
    )


def _changes(scrapes: Sequence[_Scrape]) -> list[int]:
    """Indices of the scrapes that showed a new snapshot; how old the first one's was is not known."""
    return [i for i, (a, b) in enumerate(itertools.pairwise(scrapes), start=1) if a.gpus != b.gpus]


def _refresh_period_s(scrapes: Sequence[_Scrape]) -> float:
    """Usual time between new snapshots; 0 where too few were seen to tell."""
    moments_s = [scrapes[index].at_s for index in _changes(scrapes)]
    between_s = [b - a for a, b in itertools.pairwise(moments_s)]
    return statistics.median(between_s) if between_s else 0.0


def _readings(uid: str, scrapes: Sequence[_Scrape]) -> list[Reading]:
    """Read a GPU's new snapshots; at both ends, of unknown age, power is held and nothing counted."""
    changes = _changes(scrapes)
    first, *_, last = range(len(scrapes))
    held = {first, last} - set(changes)
    return [
        replace(_reading(uid, scrapes[index]), counter_j=math.nan)
        if index in held
        else _reading(uid, scrapes[index])
        for index in sorted({first, *changes, last})
    ]


def _reading(uid: str, scrape: _Scrape) -> Reading:
    fields = scrape.gpus.get(uid, {})
    return Reading(
        at_s=scrape.at_s,
        power_w=_power_of(scrape, uid)[1],
        counter_j=_first(fields, ENERGY_MJ)[1] / 1e3,
        temperature_c=_first(fields, TEMPERATURE)[1],
        clock_mhz=_first(fields, CLOCK)[1],
        power_limit_w=_first(fields, LIMIT)[1],
        # DCGM hands on NVML's own bits.
        slowdown=slowdown(int(_first(fields, REASONS, 0.0)[1])),
    )


def _power_of(scrape: _Scrape, uid: str) -> tuple[str, float]:
    """Tell a GPU's power and by which metric; raises BenchError where the exporter tells none."""
    name, power_w = _first(scrape.gpus.get(uid, {}), POWER)
    if not 0 <= power_w < MOST_GPU_W:
        raise BenchError(
            f"power meter lost: the DCGM exporter tells no power of {uid}; see that the GPU is well there "
            f"(`nvidia-smi`) and that {USAGE[0]} is among the exporter's counters (its option -f)"
        )
    return name, power_w


def _first(fields: _Fields, names: Sequence[str], otherwise: float = math.nan) -> tuple[str, float]:
    """Take the first of the names that is told, and a number."""
    for name in names:
        if math.isfinite(fields.get(name, math.nan)):
            return name, fields[name]
    return "", otherwise
