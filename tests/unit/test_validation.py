"""Validation: what is refused on paper, what engines refuse, and that neither is taken for the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fakes import ENVIRONMENT, FakeLauncher, devices, hardware, study_spec

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from autotune.domain.studies.feasibility import Setting
from autotune.domain.studies.study import Requirements
from autotune.runs.validation import Asking, SpaceVerdict, validate_space


class Launcher(FakeLauncher):
    """Writes a server and a router for each configuration; 16 sequences are too many for it."""

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        if config.max_num_seqs == 16:
            raise InfeasibleConfigError("fake: 16 is too many")
        argv = (
            *(str(context.environment.executable), "--host", "{host:engine}", "--port", "{port:engine}"),
            *("--seqs", str(config.max_num_seqs), "--tp", str(config.tensor_parallel)),
        )
        env = {"SIDE": "{port:engine/side}"}
        engine = ProcessSpec(role="engine", argv=argv, env=env, devices=context.devices)
        router = ProcessSpec(role="router", argv=("router",), env={}, devices=())
        return LaunchSpec(processes=(engine, router), serving_role="router", served_model=context.model)


@dataclass
class Engine:
    """An engine that is asked: it refuses what it was told to, by what the command line ends with."""

    refusing: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)

    def __call__(
        self, engine: str, commands: Sequence[Sequence[str]], env: Mapping[str, str]
    ) -> Sequence[str | None]:
        assert engine == "fake"
        self.asked += [tuple(command) for command in commands]
        self.environments.append(env)
        return [self.refusing.get(" ".join(command[5:])) for command in commands]


def validated(engine: Engine | None, *, most_asked: int = 100) -> SpaceVerdict:
    context = LaunchContext(model="some/model", environment=ENVIRONMENT, devices=devices(2))
    setting = Setting(
        hardware=hardware(2),
        model=None,
        requirements=Requirements(),
        longest_request_tokens=13,
    )
    return validate_space(
        study_spec(),
        {"fake": Launcher()},
        {"fake": replace(context)},
        setting,
        most=100,
        asking=Asking(engine, most_asked) if engine else None,
    )


def test_without_an_engine_only_paper_speaks() -> None:
    verdict = validated(None)
    assert verdict.engine is None
    assert verdict.document()["engine"] is None
    assert (verdict.checked, verdict.accepted) == (9, 7)
    assert verdict.refusals == (("fake: 16 is too many", 2),)
    assert "the engine itself" not in verdict.describe("small.yaml")


def test_the_engine_is_asked_about_what_paper_lets_through() -> None:
    engine = Engine({"--seqs 8 --tp 2": "8 over 2"})
    verdict = validated(engine)
    assert verdict.engine is not None
    assert (verdict.engine.asked, verdict.engine.of) == (7, 7)
    assert verdict.engine.refusals == (("fake 1 itself: 8 over 2", 1),)
    assert verdict.refusals == (("fake: 16 is too many", 2),)
    assert (verdict.checked, verdict.accepted) == (9, 6)
    assert not [argv for argv in engine.asked if "16" in argv]
    assert verdict.document()["engine"] == {
        "asked": 7,
        "complete": True,
        "refused": [{"why": "fake 1 itself: 8 over 2", "configurations": 1}],
    }


def test_a_refusal_of_the_engine_is_told_as_its_own_and_as_no_promise_of_the_rest() -> None:
    told = validated(Engine({"--seqs 8 --tp 2": "8 over 2"})).describe("small.yaml")
    assert "2 refused on paper: fake: 16 is too many" in told
    assert "1 refused by fake 1 itself: 8 over 2" in told
    assert "may still fail" in told


def test_the_engine_is_asked_about_its_own_processes_with_places_filled() -> None:
    engine = Engine()
    validated(engine)
    assert {argv[0] for argv in engine.asked} == {str(ENVIRONMENT.executable)}
    assert {argv[1:5] for argv in engine.asked} == {("--host", "127.0.0.1", "--port", "8000")}
    assert engine.environments == [{"SIDE": "8000"}]


def test_a_cut_is_spread_over_the_space_and_told() -> None:
    engine = Engine()
    verdict = validated(engine, most_asked=3)
    assert len(engine.asked) == 3
    assert verdict.engine is not None
    assert (verdict.engine.asked, verdict.engine.of) == (3, 7)
    assert verdict.document()["engine"]["complete"] is False
    assert "about 3, spread over the 7" in verdict.describe("small.yaml")
    assert {argv[-1] for argv in engine.asked} == {"None", "2"}


def test_no_more_than_none_may_be_asked() -> None:
    engine = Engine()
    assert validated(engine, most_asked=0).engine is None
    assert not engine.asked
