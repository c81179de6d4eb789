"""The forms in which a recommended configuration is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.deployment import Deployment
from autotune.domain.recommending.contract import RecommendationDocument, SlaAnswer
from autotune.domain.recommending.exports.compose import compose_file
from autotune.domain.recommending.exports.images import Images
from autotune.domain.recommending.exports.kubernetes import Cluster, Object, dns_name
from autotune.domain.recommending.exports.platforms import dynamo, kserve, llmd_values, merged, with_templates
from autotune.domain.recommending.exports.shell import shell_script


class Form(StrEnum):
    """What a recommendation can be exported as."""

    SHELL = "shell"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"
    LWS = "lws"
    KSERVE = "kserve"
    DYNAMO = "dynamo"
    LLMD = "llm-d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted of an export; ``images`` by role, the engine's under an empty one.

    ``templates`` are one's own additions, merged in; ``rewritten`` writes a configuration for Dynamo.
    """

    form: Form
    name: str = ""
    replicas: int = 1
    images: Mapping[str, str] = field(default_factory=dict)
    templates: Sequence[Object] = ()
    rewritten: Callable[[EngineConfig], Deployment] | None = None


Exported = str | list[dict[str, Any]]
"""A script, or YAML documents."""


def export(document: RecommendationDocument, answer: SlaAnswer, order: Order) -> Exported:
    """A recommended configuration in a form; raises InputError where it has no such form."""
    deployment = answer.deployment
    if deployment is None or answer.configuration is None:
        raise InputError(InputProblem(f"SLA {answer.name}", f"has no deployment: {answer.deployment_reason}"))
    if order.form is Form.SHELL:
        if order.templates:
            raise InputError(InputProblem("--template", "a shell script has none", "edit the script"))
        return shell_script(deployment, notes(document, answer))
    if order.form is Form.COMPOSE:
        file = compose_file(deployment, Images(deployment, order.images))
        return [_together(file, order.templates)]
    config = EngineConfig.model_validate({**answer.configuration, "engine": deployment.engine})
    return _on_cluster(deployment, config, order, dns_name(order.name or f"{document.study}-{answer.name}"))


def notes(document: RecommendationDocument, answer: SlaAnswer) -> tuple[str, ...]:
    """What a reader of an export should know of it."""
    deployment = answer.deployment
    assert deployment is not None
    fingerprint = answer.fingerprint
    where = f"{fingerprint.device_count} x {fingerprint.device}" if fingerprint else "unknown devices"
    engine = f"{deployment.engine} {deployment.engine_version}"
    facts = [
        f"For SLA {answer.name} ({answer.contract}): study {document.study}, trial {answer.trial}.",
        f"Measured with {engine} on {where}; one replica carries {answer.operating_rps:.3g} requests/s.",
    ]
    if answer.expires:
        changes = ", ".join(answer.expires.on_change_of)
        facts.append(f"Valid until {answer.expires.at}, or until one of these changes: {changes}.")
    return tuple(facts)


def _on_cluster(deployment: Deployment, config: EngineConfig, order: Order, name: str) -> Exported:
    if order.form is Form.DYNAMO and deployment.engine != "dynamo":
        assert order.rewritten is not None
        deployment = order.rewritten(config)
    cluster = Cluster(deployment, name, Images(deployment, order.images), order.replicas)
    match order.form:
        case Form.KUBERNETES:
            if deployment.hosts > 1 and not config.pools:
                what = f"one server spreads over {deployment.hosts} hosts"
                raise InputError(InputProblem("export", what, "use --form lws"))
            objects = cluster.kubernetes()
        case Form.LWS:
            objects = cluster.leader_worker_set()
        case Form.KSERVE:
            objects = kserve(cluster)
        case Form.DYNAMO:
            objects = dynamo(cluster)
        case _:
            return [_together(llmd_values(cluster, config), order.templates)]
    return with_templates(objects, list(order.templates))


def _together(file: Object, templates: Sequence[Object]) -> Object:
    for template in templates:
        file = merged(file, template)
    return file
