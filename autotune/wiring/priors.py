"""Priors of a study: which of those it names there are for its model and accelerators, and why not others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.adapters.engines.core_peaks import core_peaks
from autotune.adapters.engines.environments import interpreter_of
from autotune.adapters.search.aiconfigurator import SYSTEMS, AiconfiguratorPrior, estimator, knows
from autotune.adapters.search.earlier_studies import earlier_studies
from autotune.domain.basics.errors import InputError
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.load.level import Level
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.search.roofline_prior import Footing, Promise, RooflinePrior
from autotune.domain.search.transfer import Task, TransferPrior
from autotune.domain.studies.events import Notice
from autotune.domain.studies.feasibility import Setting
from autotune.domain.studies.ports import EventSink, Prior
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import Bench
from autotune.runs.measure import Planner
from autotune.runs.priors import Priors
from autotune.wiring.bench import basis_for
from autotune.wiring.store import Store, launch_record

_SAMPLE_RPS, _SAMPLE_S = 2.0, 200.0
"""Load from which mean lengths are taken: some 400 requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What priors of a study stand on: ``basis`` is the power that ranks, ``plan`` what requests are like.

    ``executables`` are those of its engines.
    """

    study: StudySpec
    setting: Setting
    basis: PowerBasis
    plan: Planner
    store: Store
    executables: tuple[Path, ...] = ()

    @property
    def device(self) -> str:
        """Name of the accelerators, the file's own where it gives one."""
        devices = self.setting.hardware.devices
        return self.study.hardware_asked.accelerator or (devices[0].name if devices else "")


def ground_of(study: StudySpec, benches: Mapping[str, Bench], setting: Setting, store: Store) -> Ground:
    """What a study on these benches stands on."""
    bench = next(iter(benches.values()))
    return Ground(
        study=study,
        setting=setting,
        basis=basis_for(study, bench.environment.kind),
        plan=bench.plan,
        store=store,
        executables=tuple(each.environment.executable for each in benches.values()),
    )


def priors_of(ground: Ground, sink: EventSink) -> Priors:
    """Those priors of a study that there are; says why of the others."""
    study = ground.study
    made: dict[str, Prior] = {}
    for name in study.priors:
        prior = _MAKERS[name](ground)
        if isinstance(prior, str):
            sink(Notice(f"no prior {name}: {prior}"))
        elif prior is not None:
            made[name] = prior
    return Priors(made, [sla.name for sla in study.slas])


def _roofline(ground: Ground) -> Prior | str:
    shape, study = ground.setting.model, ground.study
    if shape is None:
        return f"the config.json of {study.model} is not at hand"
    on_cores = ground.setting.hardware.kind is DeviceKind.CPU
    footing = _on_cores(ground) if on_cores else _on_accelerators(ground)
    if isinstance(footing, str):
        return footing
    asked = promises(study, ground.plan)
    return RooflinePrior(shape, footing, asked, headroom=study.measurement.headroom)


def _on_accelerators(ground: Ground) -> Footing | str:
    accelerator = read_accelerators().find(ground.device)
    if accelerator is None or accelerator.performance is None:
        return f"no peaks are known of {ground.device!r}"
    return Footing.of_accelerators(accelerator, accelerator.performance, ground.basis)


def _on_cores(ground: Ground) -> Footing | str:
    if ground.basis.ranks:
        return "nothing is foreseen of the watts of cores"
    interpreters = (interpreter_of(path) for path in ground.executables if path.is_absolute())
    interpreter = next(filter(None, interpreters), None)
    if interpreter is None:
        return "no engine of this machine is there to measure a core with"
    cores = ground.setting.hardware.devices
    peaks = core_peaks(interpreter, sum(core.memory_bytes for core in cores) / 1e9)
    return peaks if isinstance(peaks, str) else Footing.of_cores(peaks, len(cores))


def _aiconfigurator(ground: Ground) -> Prior | str:
    estimate, study, shape = estimator(), ground.study, ground.setting.model
    if estimate is None:
        return "it is not installed; pip install 'autotune-inference[aiconfigurator]'"
    accelerator = read_accelerators().find(ground.device)
    if accelerator is None or accelerator.name not in SYSTEMS:
        return f"it has no measurements of {ground.device!r}"
    if shape is None or not knows(study.model):
        return f"it does not know {study.model}"
    return AiconfiguratorPrior(
        estimate, study.model, shape, accelerator, promises(study, ground.plan), basis=ground.basis
    )


def promises(study: StudySpec, plan: Planner) -> tuple[Promise, ...]:
    """Every SLA with the mean lengths of requests as they would be sent."""
    lengths = {}
    for workload in study.workload_names:
        requests = plan(Level(workload, rate_rps=_SAMPLE_RPS), _SAMPLE_S, study.seed).requests
        prompts = fmean(sum(segment.tokens for segment in r.prompt) for r in requests)
        lengths[workload] = prompts, fmean(r.output_tokens for r in requests)
    return tuple(
        Promise(sla=sla, prompt_tokens=lengths[at][0], output_tokens=lengths[at][1])
        for sla in study.slas
        for at in [study.workload_of(sla)]
    )


def _transfer(ground: Ground) -> Prior | None:
    """The studies of this storage; a first one has none before it, which is nothing to be told."""
    store, study = ground.store, ground.study
    earlier = earlier_studies(store.catalog, study.name, lambda name, number: _device_of(store, name, number))
    if not earlier:
        return None
    here = Task(model=study.model, device=ground.device)
    return TransferPrior(here, earlier, [sla.name for sla in study.slas])


def _device_of(store: Store, name: str, number: int) -> str:
    """What a trial ran on; empty where the archive of that study is gone."""
    try:
        return launch_record(store, name, number).device
    except (InputError, KeyError):
        return ""


_MAKERS: Mapping[str, Callable[[Ground], Prior | str | None]] = {
    "roofline": _roofline,
    "aiconfigurator": _aiconfigurator,
    "transfer": _transfer,
}
