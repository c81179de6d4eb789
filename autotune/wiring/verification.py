"""Verifications: from a recommendation document to a bench that measures its contract again."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.configs.config import EngineConfig
from autotune.domain.configs.space import SearchSpace
from autotune.domain.judging.quality import QualitySpec
from autotune.domain.load.progress import Cancelled
from autotune.domain.recommending.contract import RecommendationDocument, SlaAnswer
from autotune.domain.recommending.exports.forms import notes
from autotune.domain.recommending.exports.shell import shell_script
from autotune.domain.recommending.verification import Verification, not_judged, requests_wanted
from autotune.domain.studies.ports import EventSink
from autotune.domain.studies.study import Budget, EngineSpec, PowerSpec, StudySpec
from autotune.runs.launch import Bench
from autotune.runs.verify import ExportedLauncher, VerifyTask, verify
from autotune.wiring.bench import benches_for

URL_ENGINE = "url"
SPARE = 1.5
"""A window is this much longer than the fewest requests would take that can show the SLA to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOrder:
    """What to verify against: what is exported, run here, or the deployment at ``url``.

    ``environment`` is the engine's virtual environment, ``served_model`` the name that a URL knows it by,
    ``window_s`` the length of windows where the document's is not wanted.
    """

    document: RecommendationDocument
    answers: Sequence[SlaAnswer]
    url: str | None = None
    token_variable: str = ""
    served_model: str = ""
    environment: str | None = None
    window_s: float | None = None


def run_verification(order: VerifyOrder, sink: EventSink, cancelled: Cancelled) -> tuple[Verification, ...]:
    """Measure and judge every answer, one launch for each configuration; in the order of the answers.

    Raises InputError, BenchError, StudyCancelledError.
    """
    found: dict[str, Verification] = {}
    for alike in _by_configuration(order.answers):
        judgeable = alike[0].operating_rps and (order.url or alike[0].deployment)
        verified = _verified(order, alike, sink, cancelled) if judgeable else _withheld(alike)
        found |= {each.sla: each for each in verified}
    return tuple(found[answer.name] for answer in order.answers)


def study_for(order: VerifyOrder, answers: Sequence[SlaAnswer]) -> StudySpec:
    """A study that measures these answers as theirs was measured, with requests that nobody saw before."""
    measuring, deployment = order.document.measuring, answers[0].deployment
    fingerprint = answers[0].fingerprint
    assert fingerprint is not None
    if order.url:
        name = order.served_model or (deployment.served_model if deployment else fingerprint.model)
        args, variable = ("--model", name), order.token_variable
        engine = EngineSpec(name=URL_ENGINE, url=order.url, args=args, token_variable=variable)
    else:
        assert deployment is not None
        known = order.environment or measuring.environment
        at = known if known and (order.environment or Path(known).is_dir()) else None
        engine = EngineSpec(name=deployment.engine, environment=at)
    wanted_s = max(SPARE * requests_wanted(a.sla) / a.operating_rps for a in answers if a.operating_rps)
    window_s = order.window_s or max(measuring.measurement.final_window, wanted_s)
    return StudySpec(
        name=f"verify-{order.document.study}"[:100],
        model=fingerprint.model,
        engines=(engine,),
        workloads=measuring.workloads,
        slas=tuple(answer.sla for answer in answers),
        space=SearchSpace(dimensions={}),
        budget=Budget(launches=1),
        power=PowerSpec(prices=measuring.prices),
        measurement=measuring.measurement.model_copy(update={"final_window": window_s}),
        quality=QualitySpec(gate="off"),
        seed=secrets.randbits(31),
    )


def _verified(
    order: VerifyOrder, answers: Sequence[SlaAnswer], sink: EventSink, cancelled: Cancelled
) -> tuple[Verification, ...]:
    study = study_for(order, answers)
    workdir = Path(tempfile.mkdtemp(prefix="autotune-verify-"))
    with benches_for(study) as benches:
        (bench,) = benches.values()
        if order.url:
            config = EngineConfig(engine=URL_ENGINE)
        else:
            bench, config = _exported(order, answers[0], bench)
        task = VerifyTask(study=study, config=config, answers=answers, workdir=workdir)
        return verify(task, bench, sink, cancelled)


def _exported(order: VerifyOrder, answer: SlaAnswer, bench: Bench) -> tuple[Bench, EngineConfig]:
    """A bench that runs the exported script, and the configuration that says which devices it needs."""
    deployment = answer.deployment
    assert deployment is not None
    if deployment.image_evidence is EvidenceLevel.RAN:
        what = f"was measured from the image {deployment.image}, which no shell script starts"
        remedy = "start what `autotune export --form compose` wrote, and give its --url"
        raise InputError(InputProblem(f"SLA {answer.name}", what, remedy))
    missing = [each.name for each in deployment.secrets if each.required and each.name not in os.environ]
    if missing:
        remedy = "set them as the deployment has them"
        raise InputError(InputProblem("environment", f"{', '.join(missing)} not set", remedy))
    launcher = ExportedLauncher(
        inner=bench.launcher,
        deployment=deployment,
        script=shell_script(deployment, notes(order.document, answer)),
        path=str(bench.environment.executable.parent),
    )
    words = {word: value for word, value in (answer.configuration or {}).items() if word != "extra_args"}
    config = EngineConfig.model_validate({**words, "engine": deployment.engine})
    # Whether the engine takes the arguments is what running the script shows.
    unasked = replace(bench.environment, flags={})
    return replace(bench, launcher=launcher, environment=unasked), config


def _withheld(answers: Sequence[SlaAnswer]) -> tuple[Verification, ...]:
    return tuple(
        not_judged(answer, f"there is nothing to verify: {answer.deployment_reason or answer.reason}")
        for answer in answers
    )


def _by_configuration(answers: Sequence[SlaAnswer]) -> list[list[SlaAnswer]]:
    """Answers that one launch serves together."""
    groups: dict[str, list[SlaAnswer]] = {}
    for answer in answers:
        same = f"{answer.deployment.model_dump_json() if answer.deployment else answer.name}"
        groups.setdefault(same, []).append(answer)
    return list(groups.values())
