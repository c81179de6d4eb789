"""Divides a study's arguments among the frontend and the workers, and reads which engine they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.basics.errors import InfeasibleConfigError
from launchers.dynamo.flags import (
    FRONTEND_FLAGS,
    FRONTEND_TABLE,
    NO_EVENTS,
    OF_THE_ADDRESS,
    ROUTER_MODE,
    SERVED_MODEL_NAME,
)
from launchers.options import Tokens

_MODULE = "-m"
_TAKEN = OF_THE_ADDRESS & {"--http-host", "--http-port"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What the frontend is told, what every worker is, and the engine's module, empty if none is named."""

    module: str
    frontend: Tokens
    workers: Tokens

    @property
    def routes_by_cache(self) -> bool:
        """Whether the router wants to hear from workers what they have cached."""
        options = {option.flag: option.values for option in FRONTEND_TABLE.read(self.frontend)[0]}
        return options.get(ROUTER_MODE) == ("kv",) and NO_EVENTS not in options

    def served_model(self, model: str) -> str:
        """The name that requests give the model."""
        options, _ = FRONTEND_TABLE.read(self.workers)
        names = [o.values[0] for o in options if o.flag == SERVED_MODEL_NAME and o.values]
        return names[-1] if names else model


def divided(*sources: Sequence[str]) -> Arguments:
    """Divide arguments; ``-m MODULE`` in front of a source names the engine.

    Raises InfeasibleConfigError for an address, which is the launch's own.
    """
    module = ""
    frontend: list[str] = []
    workers: list[str] = []
    for source in sources:
        tokens = tuple(source)
        if tokens[:1] == (_MODULE,) and len(tokens) > 1:
            module, tokens = tokens[1], tokens[2:]
        options, loose = FRONTEND_TABLE.read(tokens)
        if loose:
            raise InfeasibleConfigError(f"dynamo: {' '.join(loose)} belongs to no flag")
        for option in options:
            if option.flag in _TAKEN:
                raise InfeasibleConfigError(f"dynamo: {option.flag} is the launch's own")
            (frontend if option.flag in FRONTEND_FLAGS else workers).extend(option.tokens)
    return Arguments(module=module, frontend=tuple(frontend), workers=tuple(workers))
