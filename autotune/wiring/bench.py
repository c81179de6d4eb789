"""The bench of a study on this machine: engine host, load clients, meters, preflight, load plans."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from autotune import __version__
from autotune.adapters.devices.accelerators import read_accelerators
from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.devices.preflight import LocalPreflight
from autotune.adapters.engines.containers import ContainedLauncher
from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.engines.hygiene import Hygiene
from autotune.adapters.engines.kernel_log import KernelLog
from autotune.adapters.engines.lm_eval import LmEval
from autotune.adapters.engines.remote import RemoteEngineHost
from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.files.text_prompts import prompt_maker
from autotune.adapters.files.traffic_files import load_traffic
from autotune.adapters.load.clients import LoadClients
from autotune.adapters.load.output_probe import HttpOutputProbe
from autotune.adapters.power import rapl as power_rapl
from autotune.adapters.power.amd import AmdPowerMeter
from autotune.adapters.power.dcgm import DcgmPowerMeter
from autotune.adapters.power.estimated import EstimatedPowerMeter
from autotune.adapters.power.ipmi import IpmiPowerMeter
from autotune.adapters.power.none import NoPowerMeter
from autotune.adapters.power.nvml import NvmlPowerMeter
from autotune.adapters.power.provisioned import ProvisionedPowerMeter
from autotune.adapters.power.rapl import RaplPowerMeter
from autotune.adapters.power.redfish import RedfishAccess, RedfishPowerMeter
from autotune.adapters.power.settings import settings as power_settings
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.hardware import DeviceKind, Hardware
from autotune.domain.launches.launch import EngineEnvironment
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.planning import plan_load
from autotune.domain.load.traffic import Traffic
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.studies.ports import EngineHost, Launcher, PowerMeter
from autotune.domain.studies.study import Ipmi, Redfish, StudySpec
from autotune.runs.launch import Bench
from autotune.runs.measure import Planner
from autotune.wiring.engines import environment_for, hardware_for, launcher_of

OF_DEVICES = frozenset({PowerBasis.GPU, PowerBasis.ESTIMATED, PowerBasis.PROVISIONED, PowerBasis.NONE})
"""Bases on which the watts of a launch are those of its own devices."""
FALLBACK_VOCAB_SIZE = 32_000
"""Where a model's config.json is not at hand: prompts stay within the smallest common vocabulary."""


@contextmanager
def benches_for(study: StudySpec) -> Iterator[Mapping[str, Bench]]:
    """Everything outside that a study's launches need here, by engine; raises InputError, BenchError.

    The load clients are processes, and live as long as the ``with`` block.
    """
    environments = {engine.name: environment_for(engine) for engine in study.engines}
    kind = kind_of(environments.values())
    hardware = hardware_for(study, kind)
    # Made before the first lease: they end what a killed tuner left on the devices.
    inventory = LocalInventory(kind=kind)
    hosts = {name: _host(launcher_of(name), inventory) for name in environments}
    traffic = traffic_of(study)
    with LoadClients() as driver:
        common = Bench(
            launcher=launcher_of(study.engines[0].name),
            environment=environments[study.engines[0].name],
            host=hosts[study.engines[0].name],
            hardware=hardware,
            inventory=inventory,
            driver=driver,
            probe=HttpOutputProbe(),
            tasks=LmEval(),
            meter=meter_for(study, kind),
            beside=meters_beside(study, kind),
            preflight=LocalPreflight(),
            settings=power_settings,
            plan=planner_for(study, traffic),
            versions={},
            remarks=tuple(_left_out(traffic)),
        )
        yield {
            name: replace(
                common,
                launcher=ContainedLauncher(launcher_of(name)),
                environment=environment,
                host=hosts[name],
                versions=versions_of(study, environment, hardware),
            )
            for name, environment in environments.items()
        }


@contextmanager
def lanes_for(study: StudySpec) -> Iterator[tuple[Mapping[str, Bench], ...]]:
    """A bench for each engine that may run at once, which differ in their load clients alone.

    Raises InputError where watts are not measured by device, so that no launch has watts of its own.
    """
    with benches_for(study) as benches, ExitStack() as clients:
        basis = basis_for(study, next(iter(benches.values())).environment.kind)
        if study.most_engines > 1 and basis not in OF_DEVICES:
            what = f"power basis {basis.value!r} is the whole machine's, and no launch's alone"
            remedy = "leave out `at_once` and `fill_node`"
            raise InputError(InputProblem("several engines at once", what, remedy))
        drivers = [clients.enter_context(LoadClients()) for _ in range(study.most_engines - 1)]
        further = [{name: replace(b, driver=driver) for name, b in benches.items()} for driver in drivers]
        yield benches, *further


def kind_of(environments: Iterable[EngineEnvironment]) -> DeviceKind:
    """The kind of devices that all of a study's engines are built for; raises InputError for several."""
    kinds = {environment.engine: environment.kind for environment in environments}
    if len(set(kinds.values())) > 1:
        what = "are built for different devices: " + ", ".join(f"{e} for {k}" for e, k in kinds.items())
        remedy = "one study compares on the same devices: give each kind a study of its own"
        raise InputError(InputProblem("engines", what, remedy))
    return next(iter(kinds.values()))


def _host(launcher: Launcher, inventory: LocalInventory) -> EngineHost:
    traits = launcher.traits
    if not traits.launched:
        return RemoteEngineHost(traits.counters)
    return LocalEngineHost(
        counters=traits.counters,
        counters_path=traits.counters_path,
        reset_path=traits.reset_path,
        hygiene=Hygiene(set_aside=inventory.set_aside),
        kernel_log=KernelLog(),
    )


TrafficOf = Mapping[str, Traffic | None]
"""What the files of a study's workloads hold, by workload."""


def traffic_of(study: StudySpec) -> TrafficOf:
    """Read the files of a study's workloads; raises InputError."""
    return {workload.name: load_traffic(workload) for workload in study.workloads}


def planner_for(study: StudySpec, traffic: TrafficOf) -> Planner:
    """Draws the requests of a study's levels; text is tokenised now. Raises InputError."""
    files = ModelFiles()
    shape = files.shape(study.model)
    vocab_size = (shape.vocab_size if shape else 0) or FALLBACK_VOCAB_SIZE
    prompts = {
        w.name: prompt_maker(w, tokenizer=files.tokenizer(study.model), vocab_size=vocab_size)
        for w in study.workloads
    }

    def plan(level: Level, duration_s: float, seed: int) -> LoadPlan:
        return plan_load(
            study.workload(level.workload),
            level,
            duration_s=duration_s,
            seed=seed,
            prompts=prompts[level.workload](seed),
            traffic=traffic[level.workload],
        )

    return plan


def _left_out(traffic: TrafficOf) -> Iterator[str]:
    for name, held in traffic.items():
        if held is not None and held.left_out > 0:
            yield f"workload {name}: {held.left_out:.1%} of its file are left out as too long or empty"


def basis_for(study: StudySpec, kind: DeviceKind) -> PowerBasis:
    """The basis that ranks: the study's own, else what can be measured on these devices."""
    if study.power.basis != "auto":
        return study.power.basis
    match kind:
        case DeviceKind.CUDA | DeviceKind.ROCM:
            return PowerBasis.GPU
        case DeviceKind.REMOTE:
            return PowerBasis.PROVISIONED if study.hardware_asked.accelerator else PowerBasis.NONE
        case DeviceKind.CPU:
            return PowerBasis.ESTIMATED if power_rapl.available() else PowerBasis.HOST


def meter_for(study: StudySpec, kind: DeviceKind) -> PowerMeter:
    """The meter of the study's power basis; raises InputError for one that this machine has not."""
    basis = basis_for(study, kind)
    match basis, kind:
        case PowerBasis.GPU, DeviceKind.CUDA:
            return DcgmPowerMeter(study.power.dcgm) if study.power.dcgm else NvmlPowerMeter()
        case PowerBasis.GPU, DeviceKind.ROCM:
            return AmdPowerMeter()
        case PowerBasis.HOST, DeviceKind.CPU:
            if why := power_rapl.available():
                raise InputError(InputProblem("power.basis", why, "write `basis: auto`"))
            return RaplPowerMeter()
        case PowerBasis.ESTIMATED, DeviceKind.CPU:
            return EstimatedPowerMeter()
        case PowerBasis.PROVISIONED, DeviceKind.CUDA | DeviceKind.ROCM | DeviceKind.REMOTE:
            return ProvisionedPowerMeter(read_accelerators())
        case PowerBasis.NONE, DeviceKind.REMOTE:
            return NoPowerMeter()
    what = f"no meter here gives basis {basis.value!r} for {kind.value} devices"
    raise InputError(InputProblem("power.basis", what, "write `basis: auto`"))


def meters_beside(study: StudySpec, kind: DeviceKind) -> tuple[PowerMeter, ...]:
    """Meters whose watts stand beside those that rank: the host's packages, and the node that is named."""
    meters: list[PowerMeter] = []
    if kind is DeviceKind.CUDA and not power_rapl.available():
        meters.append(RaplPowerMeter())
    match study.power.node:
        case Redfish() as at:
            meters.append(
                RedfishPowerMeter(
                    RedfishAccess(
                        url=at.redfish,
                        user_variable=at.user_variable,
                        password_variable=at.password_variable,
                        chassis=at.chassis,
                        ca_file=Path(at.ca_file) if at.ca_file else None,
                        verify=at.verify,
                    )
                )
            )
        case Ipmi() as at:
            meters.append(IpmiPowerMeter(command=at.ipmi))
        case None:
            pass
    return tuple(meters)


def versions_of(study: StudySpec, environment: EngineEnvironment, hardware: Hardware) -> dict[str, str]:
    """What a figure depends on beside the configuration."""
    return {
        "autotune": __version__,
        "study_sha256": hashlib.sha256(study.model_dump_json().encode()).hexdigest(),
        environment.engine: environment.version,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "hardware": hardware.describe(),
        "device_kind": hardware.kind.value,
        "driver": hardware.devices[0].driver if hardware.devices else "",
        "devices": ", ".join(device.uid for device in hardware.devices),
    }
