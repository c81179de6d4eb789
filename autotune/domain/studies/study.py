"""The study: what is tuned, on what, for whom, and within which budget; as its YAML file says it."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from autotune.domain.basics.quantities import Bytes, DurationS, PositiveDurationS
from autotune.domain.configs.config import EngineConfig, Words, error_at
from autotune.domain.configs.space import Branch, Point, SearchSpace
from autotune.domain.hardware.hardware import Device
from autotune.domain.hardware.node import CoolDown
from autotune.domain.judging.drift import DriftSpec
from autotune.domain.judging.ledger import Prices
from autotune.domain.judging.quality import QualitySpec
from autotune.domain.judging.scoring import HEADROOM
from autotune.domain.judging.sla import Sla
from autotune.domain.launches.launch import Container, EngineEnvironment, LaunchContext
from autotune.domain.load.workload import Workload
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.search.stopping import DeploymentSpec
from autotune.domain.studies.records import Purpose

USUAL_SOAK_S = 300.0
SOAK_SHARE = 0.1
"""Share of a budget that soaks may take unasked."""

Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSpec(_Part):
    """An engine, and what is the same for every configuration of it, its defaults included."""

    name: str = Field(description="launcher id, such as vllm; `autotune engines list` shows them")
    environment: str | None = Field(
        None, description="the engine's virtual environment; else the installed one, else PATH"
    )
    space: SearchSpace | None = Field(None, description="of this engine alone, in place of the study's")
    fixed: Words = Field({}, description="words that every configuration has")
    args: tuple[str, ...] = Field((), description="engine arguments that every configuration has")
    env: dict[str, str] = Field({}, description="environment variables of the engine")
    image: str | None = Field(None, description="container image to run the engine from")
    runtime: Literal["docker", "podman", "apptainer"] = Field("docker", description="what runs the image")
    mounts: tuple[str, ...] = Field((), description="folders of this machine that the container sees")
    url: str | None = Field(None, description="of an endpoint that runs already (engine url)")
    token_variable: str = Field("", description="environment variable that holds the endpoint's token")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        places = {"environment": self.environment, "image": self.image, "url": self.url}
        if len(given := [name for name, at in places.items() if at]) > 1:
            raise ValueError(
                f"{' and '.join(given)} are given; an engine is in one place, leave out the others"
            )
        return self

    @property
    def container(self) -> Container | None:
        """The container it runs in, where an image is named."""
        return Container(image=self.image, runtime=self.runtime, mounts=self.mounts) if self.image else None

    def context(
        self, model: str, environment: EngineEnvironment, devices: tuple[Device, ...]
    ) -> LaunchContext:
        """What a launcher needs to write a launch on these devices."""
        return LaunchContext(
            model=model,
            environment=environment,
            devices=devices,
            url=self.url or "",
            token_variable=self.token_variable,
            container=self.container,
            args=self.args,
            env=self.env,
        )


class HardwareSpec(_Part):
    """How much of the machine to use."""

    gpus: PositiveInt | None = None
    cpus: PositiveInt | None = Field(None, description="cores, on a machine without GPUs")
    least_memory: Bytes | None = Field(None, description="devices with less memory are left alone")
    accelerator: str | None = Field(None, description="what serves behind a URL, as the constants name it")
    allow: tuple[Literal["power_limit", "clocks"], ...] = Field(
        (), description="settings of the GPUs that a configuration may change; put back after each launch"
    )


class Requirements(_Part):
    """What no configuration may give up."""

    context_length: PositiveInt | None = Field(None, description="least context, tokens")
    lora: bool = False
    tools: str | None = Field(None, description="tool-call parser to serve with")
    sampling: tuple[Literal["min_p", "logit_bias", "logprobs", "structured_output"], ...] = Field(
        (), description="sampling features that requests use; speculation that drops one is refused"
    )
    most_gpus: PositiveInt | None = Field(None, description="devices per replica at most")


class Budget(_Part):
    """Where the study stops; finals are kept within it too. At least one bound."""

    launches: PositiveInt | None = Field(None, description="engine starts, finals included")
    wall_time: PositiveDurationS | None = None
    accelerator_hours: PositiveFloat | None = Field(None, description="devices held x hours")

    @property
    def shortest_s(self) -> float:
        """Wall time at most, were one device held throughout; infinite where launches alone are bounded."""
        hours = self.accelerator_hours or math.inf
        return min(self.wall_time or math.inf, hours * 3600)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.launches is None and self.wall_time is None and self.accelerator_hours is None:
            raise ValueError("a budget needs a bound; give launches, wall_time or accelerator_hours")
        return self


class Redfish(_Part):
    """A node's controller; user and password stand in environment variables, which are named here."""

    redfish: str = Field(description="URL of the controller, such as https://bmc.example")
    user_variable: str = ""
    password_variable: str = ""
    chassis: str = Field("", description="id, where the controller tells of several")
    ca_file: str | None = None
    verify: bool = True


class Ipmi(_Part):
    """A node's controller, asked through ipmitool."""

    ipmi: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="how ipmitool is called: [ipmitool], or [ipmitool, -I, lanplus, -H, bmc, -U, me, -E]"
    )


class PowerSpec(_Part):
    """Where watts come from, which of them rank, and what they cost."""

    basis: Literal["auto"] | PowerBasis = Field("auto", description="whose good tokens per joule rank")
    dcgm: tuple[str, ...] = Field(
        (), description="URLs of DCGM exporters that tell the GPUs' watts, in place of NVML here"
    )
    node: Redfish | Ipmi | None = Field(None, description="meter of the whole node, recorded beside")
    prices: Prices = Prices()


class MeasurementSpec(_Part):
    """How long a load level lasts and how finely capacity is searched."""

    warmup: DurationS = Field(2.0, description="least time before the window, driven and thrown away")
    longest_warmup: DurationS = Field(
        60.0, description="the window opens then, marked unsteady, if the load has not settled"
    )
    window: PositiveDurationS = Field(10.0, description="least length of the window")
    longest_window: DurationS = Field(
        60.0, description="a window that is not precise enough by then ends anyway"
    )
    final_window: PositiveDurationS = Field(120.0, description="the same for windows of the finals")
    precision: Share = Field(
        0.1, description="half-width of throughput's 90 % interval, as a share, at which a window may end"
    )
    final_precision: Share = Field(0.05, description="the same for windows of the finals")
    headroom: Annotated[float, Field(gt=0, le=1)] = Field(HEADROOM, description="operating point / capacity")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="resolution of capacity")
    most_levels: PositiveInt = Field(8, description="open-loop levels on one launch")
    saturating_concurrency: PositiveInt = Field(64, description="in flight in the closed-loop level")
    cool_down: CoolDown = Field(CoolDown(), description="wait for devices as cool as before the first launch")
    start_timeout: PositiveDurationS = Field(600.0, description="an engine not ready by then is censored")
    request_timeout: PositiveDurationS = Field(60.0, description="a request not finished by then failed")


class StudySpec(_Part):
    """A study file."""

    name: Name = Field("", description="the file's stem if left out")
    model: str = Field(description="path, or name on the hub")
    engines: Annotated[tuple[EngineSpec, ...], Field(min_length=1)]
    hardware: Literal["auto"] | HardwareSpec = "auto"
    workloads: Annotated[tuple[Workload, ...], Field(min_length=1)]
    slas: Annotated[tuple[Sla, ...], Field(min_length=1)]
    space: SearchSpace | None = Field(None, description="of every engine that has none of its own")
    try_first: tuple[Point, ...] = Field(
        (), description="points to launch on each engine before the search chooses"
    )
    priors: tuple[Literal["roofline", "aiconfigurator", "transfer"], ...] = Field(
        ("roofline", "transfer"),
        description="what tells of configurations before they are launched; launches correct it",
    )
    requirements: Requirements = Requirements()
    baseline: str | None = Field(None, description="the command line that production runs today")
    budget: Budget
    power: PowerSpec = PowerSpec()
    drift: DriftSpec = DriftSpec()
    measurement: MeasurementSpec = MeasurementSpec()
    quality: QualitySpec = QualitySpec()
    storage: str = Field("sqlite:///studies.db", description="any SQLAlchemy URL")
    sampler: Literal["surrogate", "tpe", "random"] = Field(
        "surrogate",
        description="suggests launches: ours, by priors and what earlier launches showed; or, to compare it "
        "with, Optuna's TPE or random search",
    )
    at_once: PositiveInt = Field(
        1,
        description="launches of the search at once, where devices are idle; finals are launched alone",
    )
    fill_node: bool = Field(
        False,
        description="finals and soaks run beside copies of themselves on all other devices, under the same "
        "load, as they will in service; needs `hardware` to say how many devices there are",
    )
    seed: int = 0
    deployment: DeploymentSpec | None = Field(
        None, description="where the answer will serve; the search stops when another launch saves less there"
    )
    soak: DurationS | None = Field(
        None,
        description="how long each winner is driven in bursts at last, 0s for not at all; if left out 5m, "
        "where that takes no more than a tenth of the budget",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = {
            "engines": tuple(engine.name for engine in self.engines),
            "workloads": self.workload_names,
            "slas": tuple(sla.name for sla in self.slas),
        }
        for part, given in names.items():
            for index, name in enumerate(given):
                if name in given[:index]:
                    raise error_at(f"{name!r} is the name of another; name them apart", part, index, "name")
        if self.fill_node and not self._devices_asked:
            raise error_at("needs the number of devices; write `hardware: { gpus: 8 }`", "fill_node")
        if self.space is None and any(engine.space is None for engine in self.engines):
            raise error_at("is missing; write `space: NAME`, or one for each engine", "space")
        for index, sla in enumerate(self.slas):
            if sla.workload is not None and sla.workload not in self.workload_names:
                what = f"no workload is named {sla.workload!r}; known: {', '.join(self.workload_names)}"
                raise error_at(what, "slas", index, "workload")
        return self

    @property
    def soak_s(self) -> float:
        """How long a soak lasts, seconds; 0 for none."""
        if self.soak is not None:
            return self.soak
        count, left_s = len(self.slas), self.budget.shortest_s
        few = self.budget.launches is not None and count > SOAK_SHARE * self.budget.launches
        return 0.0 if few or count * USUAL_SOAK_S > SOAK_SHARE * left_s else USUAL_SOAK_S

    @property
    def hardware_asked(self) -> HardwareSpec:
        """What the file says of hardware; ``auto`` asks for nothing in particular."""
        return HardwareSpec() if self.hardware == "auto" else self.hardware

    def engine(self, name: str) -> EngineSpec:
        """One engine by its name."""
        return next(engine for engine in self.engines if engine.name == name)

    def devices_held(self, config: EngineConfig) -> int:
        """Devices that a launch of a configuration holds; behind a URL all that are said to serve there."""
        remote = any(engine.url for engine in self.engines if engine.name == config.engine)
        return (self.hardware_asked.gpus or 1) if remote else config.devices

    def copies(self, config: EngineConfig, purpose: Purpose) -> int:
        """How many engines of a configuration a launch has: finals and soaks may fill the node."""
        if not self.fill_node or purpose not in {Purpose.FINAL, Purpose.SOAK}:
            return 1
        return max(self._devices_asked // self.devices_held(config), 1)

    @property
    def most_engines(self) -> int:
        """How many engines of this study may run at once."""
        return max(self.at_once, self._devices_asked if self.fill_node else 1)

    @property
    def _devices_asked(self) -> int:
        return self.hardware_asked.gpus or self.hardware_asked.cpus or 0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What is searched, by engine."""
        return tuple(
            Branch(self.default_config(engine), engine.space or self._common_space) for engine in self.engines
        )

    @property
    def _common_space(self) -> SearchSpace:
        assert self.space is not None, "the validator saw to it"
        return self.space

    @property
    def workload_names(self) -> tuple[str, ...]:
        """Names of the workloads, in file order."""
        return tuple(w.name for w in self.workloads)

    def workload(self, name: str) -> Workload:
        """One workload by its name."""
        return next(w for w in self.workloads if w.name == name)

    def workload_of(self, sla: Sla) -> str:
        """Name of the workload an SLA is judged on."""
        return sla.workload or self.workload_names[0]

    def slas_on(self, workload: str) -> tuple[Sla, ...]:
        """SLAs judged on one workload."""
        return tuple(s for s in self.slas if self.workload_of(s) == workload)

    def default_config(self, engine: EngineSpec | None = None) -> EngineConfig:
        """An engine's defaults, the first's if none is given: what the study fixes and requires alone."""
        engine = engine or self.engines[0]
        words: dict[str, object] = dict(engine.fixed)
        if self.requirements.context_length:
            words.setdefault("context_length", self.requirements.context_length)
        if self.requirements.lora:
            words["lora"] = True
        if self.requirements.tools:
            words["tool_parser"] = self.requirements.tools
        return EngineConfig.model_validate({"engine": engine.name, **words})
