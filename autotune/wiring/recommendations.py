"""Recommendation documents: from a study in a store, or a file, to the contract and its exports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.basics.errors import InfeasibleConfigError, InputError, InputProblem
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.judging.ledger import Ledger
from autotune.domain.judging.sla import Sla
from autotune.domain.launches.deployment import Build, Deployment, deployment_of
from autotune.domain.launches.launch import EngineEnvironment
from autotune.domain.recommending.contract import RecommendationDocument, SlaAnswer
from autotune.domain.recommending.document import VALID_DAYS, Surroundings, recommendation_document
from autotune.domain.recommending.fleet import Demand
from autotune.domain.recommending.recommendation import (
    Candidate,
    Recommendation,
    Standing,
    ledger_for,
    recommend,
)
from autotune.domain.recommending.spending import spent_on
from autotune.domain.recommending.study_drift import Studied
from autotune.domain.studies.study import EngineSpec, StudySpec
from autotune.wiring.engines import launcher_of
from autotune.wiring.store import Results, Store, results

_REVISION = "--revision"
_DYNAMO_BACKEND = "dynamo.vllm"
_DYNAMO_BACKENDS = {
    "vllm": _DYNAMO_BACKEND,
    "vllm-pd": _DYNAMO_BACKEND,
    "sglang": "dynamo.sglang",
    "sglang-pd": "dynamo.sglang",
    "trtllm": "dynamo.trtllm",
}


def recommended(
    store: Store,
    name: str,
    slas: Sequence[Sla] | None = None,
    *,
    demand: Demand | None = None,
    valid_days: int = VALID_DAYS,
) -> RecommendationDocument:
    """The recommendations of a study, or those for other SLAs, from its archive; raises InputError."""
    row, _ = store.study(name)
    read = results(store, name)
    found = [recommend(read.study, sla, read.candidates) for sla in slas or read.study.slas]
    return document_of(read, found, measured_at=row.started_at, demand=demand, valid_days=valid_days)


def document_of(
    read: Results,
    found: Sequence[Recommendation],
    *,
    measured_at: str,
    demand: Demand | None = None,
    valid_days: int = VALID_DAYS,
) -> RecommendationDocument:
    """Recommendations that were made among candidates, as the contract."""
    study, rows, candidates = read
    accelerators = read_accelerators()

    def ledger(standing: Standing) -> Ledger:
        return ledger_for(standing, study, accelerators)

    around = Surroundings(
        ledger=ledger,
        deploy=lambda candidate: deployed(study, candidate),
        candidates=candidates,
        measured_at=measured_at,
        valid_days=valid_days,
        demand=demand,
        model_revision=_revision(study),
        spent=spent_on(rows, candidates),
    )
    return recommendation_document(study, found, around)


def studied(store: Store, name: str) -> Studied:
    """A study with what it found, to be compared with another; raises InputError."""
    study, rows, candidates = results(store, name)
    return Studied(study=study, rows=rows, candidates=candidates)


def deployed(study: StudySpec, candidate: Candidate) -> Deployment:
    """A measured configuration as a deployment; raises InfeasibleConfigError, InputError."""
    config, versions = candidate.row.config, candidate.launch.versions
    engine = study.engine(config.engine)
    version = versions.get(config.engine, "")
    return deployment_for(config, engine, study.model, version=version, kind=device_kind(versions))


def deployment_for(
    config: EngineConfig, engine: EngineSpec, model: str, *, version: str, kind: DeviceKind
) -> Deployment:
    """A configuration as its launcher writes it, to deploy; raises InfeasibleConfigError, InputError."""
    launcher = launcher_of(config.engine)
    traits = launcher.traits
    if not traits.launched:
        what = "is an endpoint that runs already: there is nothing to start"
        raise InputError(InputProblem(f"engine {config.engine}", what, f"it is at {engine.url}"))
    environment = EngineEnvironment(
        engine=config.engine, executable=Path(traits.executable), version=version, kind=kind, flags={}
    )
    devices = tuple(Device(kind, place, "", f"device-{place}", 0) for place in range(config.devices))
    context = engine.context(model, environment, devices)
    image = traits.images.get(kind)
    build = Build(
        engine=config.engine,
        version=version,
        kind=kind,
        model=model,
        of_the_bench=traits.of_the_bench,
        # A build's own mark is no part of the release that the image is named after.
        image=image.format(version=version.partition("+")[0]) if image and version else None,
        container=context.container,
    )
    return deployment_of(launcher.launch_spec(config, context), build)


def device_kind(versions: Mapping[str, str]) -> DeviceKind:
    """What a launch ran on; of launches that do not say, by the words of their hardware."""
    if told := versions.get("device_kind"):
        return DeviceKind(told)
    return DeviceKind.CPU if " cores of " in versions.get("hardware", "") else DeviceKind.CUDA


def _revision(study: StudySpec) -> str | None:
    """What pins the model: a revision among the engine's arguments, or the hash of a folder's config.json."""
    for engine in study.engines:
        for flag, value in pairwise((*engine.args, "")):
            if flag == _REVISION:
                return value
            if flag.startswith(f"{_REVISION}="):
                return flag.partition("=")[2]
    config = Path(study.model) / "config.json"
    if config.is_file():
        return f"config.json sha256:{hashlib.sha256(config.read_bytes()).hexdigest()[:16]}"
    return None


def for_dynamo(answer: SlaAnswer) -> Callable[[EngineConfig], Deployment]:
    """Writes a configuration that was measured on an engine by itself as Dynamo runs that engine."""

    def rewritten(config: EngineConfig) -> Deployment:
        was = answer.deployment
        assert was is not None
        backend = _DYNAMO_BACKENDS.get(config.engine)
        if backend is None:
            known = ", ".join(_DYNAMO_BACKENDS)
            raise InputError(InputProblem("export", f"Dynamo runs no {config.engine}", f"it runs {known}"))
        inner = EngineConfig.model_validate({**config.words, "engine": "dynamo"})
        try:
            return deployment_for(
                inner,
                EngineSpec(name="dynamo", args=("-m", backend) if backend != _DYNAMO_BACKEND else ()),
                was.model,
                version="",
                kind=was.device_kind,
            )
        except InfeasibleConfigError as refused:
            raise InputError(InputProblem("export", str(refused), "use another form")) from refused

    return rewritten
