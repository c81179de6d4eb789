"""What the forms of containers share: images, ports, and where files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.launches.deployment import Deployment, Process

FIRST_PORT = 8000
FOLDER = "/etc/autotune"
"""Where the files that a process reads are mounted."""
OWN_ROUTER = "autotune.adapters.engines.pd_router"
"""The router of vLLM's pools is this package's own, and in no engine's image."""


@dataclass(frozen=True, slots=True)
class Images:
    """Which image each process runs from: the engine's, or one that was given for a role."""

    deployment: Deployment
    given: Mapping[str, str] = field(default_factory=dict)

    def of(self, process: Process) -> str:
        """The image of a process; raises InputError where none is known."""
        if image := self.given.get(process.role):
            return image
        if OWN_ROUTER in process.program:
            what = f"{process.role} is autotune's own router, which no engine's image has"
            remedy = (
                f"give --image {process.role}=IMAGE with this package in it, or use --form dynamo or llm-d"
            )
            raise InputError(InputProblem("export", what, remedy))
        image = self.given.get("") or self.deployment.image
        if image is None:
            what = f"no image of {self.deployment.engine} {self.deployment.engine_version} is known"
            raise InputError(InputProblem("export", what, "give --image IMAGE"))
        return image


def ports_within(deployment: Deployment, role: str) -> dict[str, int]:
    """A process's ports by name, counted from FIRST_PORT: it has a network of its own."""
    return {name: FIRST_PORT + place for place, name in enumerate(deployment.ports_of(role))}
