"""An endpoint by URL: nothing is launched, and nothing of it is chosen."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from autotune.domain.basics.errors import InfeasibleConfigError, InputError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import (
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
)
from launchers.url import LAUNCHER

ENVIRONMENT = EngineEnvironment(engine="url", executable=Path(), version="", kind=DeviceKind.REMOTE, flags={})


def launched(
    words: dict[str, object] | None = None,
    *,
    url: str = "https://api.example",
    token_variable: str = "",
    args: tuple[str, ...] = (),
) -> LaunchSpec:
    config = EngineConfig.model_validate({"engine": "url", **(words or {})})
    context = LaunchContext(
        model="some/model",
        environment=ENVIRONMENT,
        devices=(),
        url=url,
        token_variable=token_variable,
        args=args,
    )
    return LAUNCHER.launch_spec(config, context)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://api.example", "https://api.example"),
        ("https://api.example/v1/", "https://api.example"),
        ("http://10.0.0.7:8000/team/v1", "http://10.0.0.7:8000/team"),
    ],
)
def test_an_endpoint_is_where_the_apis_paths_follow(url: str, base: str) -> None:
    spec = launched({"context_length": 4096}, url=url, token_variable="KEY")
    assert spec.processes == ()
    assert spec.endpoint == Endpoint(base, "some/model", ignore_eos=False, token_variable="KEY")


def test_an_endpoint_may_serve_the_model_under_another_name() -> None:
    spec = launched(args=("--model", "our-model"))
    assert spec.endpoint is not None
    assert (spec.served_model, spec.endpoint.model) == ("our-model", "our-model")


@pytest.mark.parametrize("args", [("--model",), ("--tp", "2"), ("--model", "a", "b")])
def test_other_arguments_have_nobody_to_take_them(args: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="args"):
        launched(args=args)


def a_value_of(word: str) -> object:
    """Any value that the vocabulary takes for a word."""
    for value in (2, True, 0.5, "ngram"):
        with suppress(ValidationError):
            EngineConfig.model_validate({"engine": "url", word: value})
            return value
    raise AssertionError(word)


@pytest.mark.parametrize("word", sorted({*SEARCHABLE} - {"context_length"}))
def test_every_word_is_refused_by_name(word: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=word):
        launched({word: a_value_of(word)})


def test_extra_arguments_are_refused() -> None:
    with pytest.raises(InfeasibleConfigError, match="extra_args"):
        launched({"extra_args": ("--enforce-eager",)})


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.example", "ftp://api.example", "https://", "https://me:secret@api.example"),
        *("https://h/?k=v", "http://h:99999", "https://[::1"),
    ],
)
def test_what_is_no_url_of_an_endpoint_is_told(url: str) -> None:
    with pytest.raises(InputError, match="engine url: url") as raised:
        launched(url=url)
    assert "secret" not in str(raised.value)


def test_production_has_no_command_line() -> None:
    with pytest.raises(ValueError, match="no command line"):
        LAUNCHER.parse_command("vllm serve some/model")


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.STARTING, FailureClass.UNRECOGNISED),
        (Phase.FIRST_REQUEST, FailureClass.DIED_AT_FIRST_REQUEST),
        (Phase.LOADING, FailureClass.DIED_UNDER_LOAD),
    ],
)
def test_a_failure_is_told_by_when_it_came(phase: Phase, expected: FailureClass) -> None:
    seen = Evidence(phase=phase, exit_code=None, log="no answer from http://h: refused\n")
    failure = LAUNCHER.classify_failure(seen)
    assert (failure.failure_class, failure.line) == (expected, "no answer from http://h: refused")


def test_what_the_endpoint_said_tells_more_than_its_silence() -> None:
    seen = Evidence(
        phase=Phase.FIRST_REQUEST, exit_code=None, log="/health: HTTP 503", stream_error="HTTP 404"
    )
    assert LAUNCHER.classify_failure(seen).line == "HTTP 404"


def test_one_that_only_loads_is_censored_and_one_that_stalls_is_told() -> None:
    late = Evidence(phase=Phase.STARTING, exit_code=None, log="HTTP 503", timed_out=True)
    assert LAUNCHER.classify_failure(late).failure_class is FailureClass.START_TIMEOUT
    stuck = Evidence(phase=Phase.LOADING, exit_code=None, log="", stalled=True)
    assert LAUNCHER.classify_failure(stuck).failure_class is FailureClass.STALLED
