"""A launch as something to deploy: what was measured, without what only the bench needed.

Texts hold placeholders that each form of export fills in: ``{host:ROLE}`` and ``{port:ROLE}`` are where a
process listens, ``{port:ROLE/NAME}`` is a further port of it, ``{file:NAME}`` the path of one of its files
and ``{secret:NAME}`` a secret that the deployment is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import Container, LaunchSpec, ProcessSpec

PLACEHOLDER = re.compile(r"\{(host|port|file|secret):([A-Za-z0-9_./-]+)\}")
"""What it names holds nothing that a shell or YAML would read as more than a name."""
SECRET_NAME = re.compile(r"TOKEN$|SECRET|PASSWORD|CREDENTIAL|API_KEY", re.IGNORECASE)
"""Names of environment variables whose values are never written down."""
HUB_TOKEN = "HF_TOKEN"  # noqa: S105 - its name
OF_THE_BENCH = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
    }
)
"""Variables that say which devices a lease held, or that nothing may be fetched: the bench's alone."""

_SECRET_FLAG = re.compile(r"--(?:[\w-]+[-_])?(api[-_]key|(?:hf|auth|access)[-_]token|secret|password)")
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|sk-[\w-]{20,}")
_INTERPRETER = re.compile(r"python[\d.]*")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Role = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Secret(_Part):
    """A secret by the name of its environment variable; its value is in no document."""

    name: Variable
    required: bool = True


class Process(_Part):
    """One process of a deployment; an empty ``program`` is the image's own."""

    role: Role
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[Variable, str] = {}
    files: dict[FileName, str] = Field({}, description="files that it reads, by name, with their text")
    devices: NonNegativeInt = Field(0, description="accelerators, or cores on a CPU")
    host: NonNegativeInt = Field(0, description="hosts of a deployment are counted from 0")
    ready_path: str = Field("/health", description="HTTP path that answers 200 when ready; empty: none")
    depends_on: tuple[Role, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that may hold placeholders."""
        return (*self.arguments, *self.environment.values(), *self.files.values())


class Deployment(_Part):
    """The processes that serve a configuration, in starting order; ``serving_role`` takes the requests."""

    engine: str
    engine_version: str
    device_kind: DeviceKind
    model: str
    served_model: str
    processes: tuple[Process, ...]
    serving_role: str
    secrets: tuple[Secret, ...] = ()
    image: str | None = Field(None, description="container image of the engine")
    image_evidence: EvidenceLevel = Field(
        EvidenceLevel.RENDERED, description="ran: measured from this image; rendered: its name is written"
    )
    folders: tuple[str, ...] = Field((), description="folders that every process reads, such as the model's")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        roles = {process.role for process in self.processes}
        if self.serving_role not in roles:
            raise ValueError(f"no process is {self.serving_role!r}, which takes the requests")
        for process in self.processes:
            for what, name in (found for text in process.texts for found in PLACEHOLDER.findall(text)):
                known = roles if what in {"host", "port"} else process.files if what == "file" else {name}
                if (name.partition("/")[0] if what == "port" else name) not in known:
                    raise ValueError(f"{{{what}:{name}}} of {process.role} names nothing of this deployment")
        return self

    @property
    def hosts(self) -> int:
        """Hosts that it is spread over."""
        return max((process.host for process in self.processes), default=0) + 1

    @property
    def serving(self) -> Process:
        """The process that takes the requests."""
        return next(process for process in self.processes if process.role == self.serving_role)

    def ports_of(self, role: str) -> tuple[str, ...]:
        """Names of the ports that a process listens on, its own first."""
        found = (name for _, name in self._placeholders("port") if name.startswith(f"{role}/"))
        return tuple(dict.fromkeys((role, *found)))

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of all ports, the serving one first."""
        found = (name for process in self.processes for name in self.ports_of(process.role))
        return tuple(dict.fromkeys((self.serving_role, *found)))

    def _placeholders(self, what: str) -> Iterator[tuple[str, str]]:
        texts = (text for process in self.processes for text in process.texts)
        return (found for text in texts for found in PLACEHOLDER.findall(text) if found[0] == what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What was launched: engine and version, the devices it is built for, the model, and where it came from.

    ``of_the_bench`` are the engine's variables that only a bench needs. ``image`` is where the engine's maker
    has this version; that of ``container`` is the one it ran from.
    """

    engine: str
    version: str
    kind: DeviceKind
    model: str
    of_the_bench: Collection[str] = ()
    image: str | None = None
    container: Container | None = None


def deployment_of(spec: LaunchSpec, build: Build) -> Deployment:
    """Make a deployment of a launch, without what only the bench needed and without secrets.

    Raises InfeasibleConfigError for names that no form of deployment could write.
    """
    secrets: dict[str, Secret] = {}
    if not Path(build.model).is_absolute():
        secrets[HUB_TOKEN] = Secret(name=HUB_TOKEN, required=False)
    left_out = OF_THE_BENCH | frozenset(build.of_the_bench)
    try:
        return _deployment(spec, build, left_out, secrets)
    except ValidationError as odd:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in odd.errors())
        raise InfeasibleConfigError(f"{build.engine}: cannot be written as a deployment: {what}") from odd


def _deployment(
    spec: LaunchSpec, build: Build, left_out: frozenset[str], secrets: dict[str, Secret]
) -> Deployment:
    container = build.container
    processes = tuple(_process(process, container, left_out, secrets) for process in spec.processes)
    is_folder = Path(build.model).is_absolute()
    return Deployment(
        engine=build.engine,
        engine_version=build.version,
        device_kind=build.kind,
        model=build.model,
        served_model=spec.served_model,
        processes=processes,
        serving_role=spec.serving_role,
        secrets=tuple(secrets.values()),
        image=container.image if container else build.image,
        image_evidence=EvidenceLevel.RAN if container else EvidenceLevel.RENDERED,
        folders=(*((build.model,) if is_folder else ()), *(container.mounts if container else ())),
    )


def without_secrets(tokens: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Arguments with a placeholder in place of each secret, and the secrets' names."""
    clean: list[str] = []
    names: list[str] = []
    pending = ""
    for token in tokens:
        flag, equals, value = token.partition("=")
        name = _secret_name(flag)
        if pending and not token.startswith("-"):
            names.append(pending)
            clean.append(f"{{secret:{pending}}}")
        elif name and equals:
            names.append(name)
            clean.append(f"{flag}={{secret:{name}}}")
        elif _SECRET_VALUE.search(value or token):
            names.append(HUB_TOKEN)
            clean.append(_SECRET_VALUE.sub(f"{{secret:{HUB_TOKEN}}}", token))
        else:
            clean.append(token)
        pending = name if not equals else ""
    return tuple(clean), tuple(names)


def public_words(config: EngineConfig) -> dict[str, Any]:
    """A configuration's words, with a placeholder in place of each secret."""
    words = config.words
    if "extra_args" in words:
        words["extra_args"] = list(without_secrets(words["extra_args"])[0])
    return words


def filled(text: str, value: Callable[[str, str], str], literal: Callable[[str], str] = str) -> str:
    """A text with ``value(what, name)`` in place of placeholders, ``literal`` of what stands between."""
    parts, at = [], 0
    for found in PLACEHOLDER.finditer(text):
        parts += [literal(text[at : found.start()]) if found.start() > at else "", value(*found.groups())]
        at = found.end()
    rest = text[at:]
    return "".join([*parts, literal(rest) if rest or not parts else ""])


def _process(
    process: ProcessSpec,
    container: Container | None,
    left_out: frozenset[str],
    secrets: dict[str, Secret],
) -> Process:
    environment, argv = dict(process.env), process.argv
    if container is not None and argv[:1] == (container.runtime,):
        program: tuple[str, ...] = ()
        arguments, given = _inside(argv, container)
        environment |= given
    else:
        program, arguments = _split(argv)
    arguments, named = without_secrets(arguments)
    named += tuple(name for name in environment if SECRET_NAME.search(name))
    # What the study itself gave is required, the hub's token too.
    secrets.update({name: Secret(name=name) for name in named})
    return Process(
        role=process.role,
        program=program,
        arguments=arguments,
        environment={
            name: _SECRET_VALUE.sub("", value)
            for name, value in sorted(environment.items())
            if name not in left_out and not SECRET_NAME.search(name)
        },
        files=dict(process.files),
        devices=len(process.devices),
        host=process.host_slot,
        ready_path=process.ready_path,
        depends_on=process.depends_on,
    )


def _split(argv: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A command line as its program, by its plain name, and the arguments."""
    first = Path(argv[0]).name
    name = "python3" if _INTERPRETER.fullmatch(first) else first
    count = 3 if argv[1:2] == ("-m",) else 2 if argv[1:2] == ("serve",) else 1
    return (name, *argv[1:count]), tuple(argv[count:])


def _inside(argv: Sequence[str], container: Container) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Arguments and variables inside of a command line that runs an image."""
    at = argv.index(container.image)
    variables = [argv[i + 1] for i in range(at) if argv[i] in {"-e", "--env"}]
    given = dict(each.partition("=")[::2] for each in variables if "=" in each)
    named = {each: "" for each in variables if "=" not in each and SECRET_NAME.search(each)}
    return tuple(argv[at + 1 :]), {**given, **named}


def _secret_name(flag: str) -> str:
    """Name of the variable that a flag's secret comes from; empty for a flag that takes none."""
    found = _SECRET_FLAG.fullmatch(flag)
    return found[1].replace("-", "_").upper() if found else ""
