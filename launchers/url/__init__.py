"""An endpoint that runs already, by its URL: hosted, or on hardware that only its maker launches engines on.

It is measured and priced, and nothing of it is chosen: there is one configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from autotune.domain.basics.errors import InfeasibleConfigError, InputError, InputProblem
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import (
    Evidence,
    Failure,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
)
from autotune.domain.studies.ports import Launcher, LauncherTraits
from launchers.vllm.traits import COUNTERS

SERVED_MODEL = "--model"
API_ROOT = "/v1"
WORD = "context_length"

TRAITS = LauncherTraits(
    engine="url",
    executable="",
    dimensions=frozenset({WORD}),
    device_kinds=frozenset({DeviceKind.REMOTE}),
    parser_probe="",
    # Those of the engine that most endpoints with a page of counters run; any other shows none.
    counters=COUNTERS,
    launched=False,
)

_DEATHS = {
    Phase.FIRST_REQUEST: FailureClass.DIED_AT_FIRST_REQUEST,
    Phase.LOADING: FailureClass.DIED_UNDER_LOAD,
}


@dataclass(frozen=True, slots=True)
class UrlLauncher:
    """Implements the port ``Launcher`` by launching nothing."""

    traits: LauncherTraits = TRAITS

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        """Name the endpoint; the study's ``args`` may say under which ``--model`` it serves.

        Raises InfeasibleConfigError for every word but ``context_length``, which is the endpoint's own;
        InputError for a study without a usable URL.
        """
        if strange := [word for word in config.words if word != WORD]:
            raise InfeasibleConfigError(f"url: cannot express {', '.join(strange)}: it runs as it is")
        model = _served_model(context.args) or context.model
        endpoint = Endpoint(
            _base_url(context.url), model, ignore_eos=False, token_variable=context.token_variable
        )
        return LaunchSpec(
            processes=(), serving_role="", served_model=model, ignore_eos=False, endpoint=endpoint
        )

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:  # noqa: ARG002 - one signature
        """Raise ValueError: an endpoint has no command line."""
        raise ValueError("an endpoint by URL has no command line; leave `baseline` out")

    def classify_failure(self, evidence: Evidence) -> Failure:
        """Tell when it failed and with which words: of its cause nothing is seen."""
        if evidence.stalled:
            failure_class = FailureClass.STALLED
        elif evidence.timed_out:
            failure_class = FailureClass.START_TIMEOUT
        else:
            failure_class = _DEATHS.get(evidence.phase, FailureClass.UNRECOGNISED)
        line = evidence.stream_error or next(iter(evidence.log.splitlines()), "")
        return Failure(failure_class=failure_class, phase=evidence.phase, line=line)


def _served_model(args: Sequence[str]) -> str:
    match args:
        case []:
            return ""
        case [flag, name] if flag == SERVED_MODEL:
            return name
        case _:
            remedy = f"write `args: [{SERVED_MODEL}, NAME]` with the name that it serves the model under"
            raise InputError(InputProblem("engine url: args", f"cannot be given: {' '.join(args)}", remedy))


def _base_url(url: str) -> str:
    """The URL that the API's paths follow: what precedes ``/v1``."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        what = f"{url!r} is no URL of an endpoint" if url else "is missing"
        raise InputError(InputProblem("engine url: url", what, "write `url: https://HOST[:PORT][/PATH]`"))
    if parts.username is not None or parts.query or parts.fragment:
        what = "has credentials, a query or a fragment in it"
        remedy = "leave them out; a token stands in an environment variable: `token_variable: NAME`"
        raise InputError(InputProblem("engine url: url", what, remedy))
    return url.rstrip("/").removesuffix(API_ROOT).rstrip("/")


LAUNCHER: Launcher = UrlLauncher()
