"""A deployment for platforms on Kubernetes that have objects of their own: KServe, Dynamo, llm-d.

Each is a beginning to add to: what a cluster wants beside is merged in from one's own templates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import POOLS, EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.deployment import Process
from autotune.domain.recommending.exports.kubernetes import MANAGED, RESOURCES, SECRET_SUFFIX, Cluster, Object

KSERVE_CONTAINER = "kserve-container"
LLMD_TARGET_PORT = 8200
"""Where an llm-d decode worker listens behind its routing proxy."""
_LLMD_FLAGS = frozenset({"--host", "--port", "--tensor-parallel-size", "--data-parallel-size"})
"""What the llm-d chart writes itself."""
_MULTI_HOST = "lies on several hosts, which needs --form lws or kubernetes"


def kserve(cluster: Cluster) -> list[Object]:
    """An InferenceService whose predictor is the engine's container; raises InputError for pools."""
    deployment = cluster.deployment
    if len(deployment.processes) > 1:
        what = "an InferenceService has one predictor, and this has pools or several hosts"
        raise InputError(InputProblem("export", what, "use --form kubernetes, lws, dynamo or llm-d"))
    process = deployment.serving
    pod = cluster.pod(process)
    container = cluster.container(process, name=KSERVE_CONTAINER)
    # KServe's gateway finds the one port, under the name that tells its protocol.
    (port, *_) = container["ports"]
    container["ports"] = [{**port, "name": "http1"}]
    for probe in container.keys() & {"startupProbe", "readinessProbe"}:
        container[probe]["httpGet"]["port"] = port["containerPort"]
    predictor = {
        "minReplicas": cluster.replicas,
        "containers": [container],
        "volumes": pod["volumes"],
    }
    return [
        *cluster.files(),
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": cluster.name,
                "labels": MANAGED,
                "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
            },
            "spec": {"predictor": predictor},
        },
    ]


def dynamo(cluster: Cluster) -> list[Object]:
    """A DynamoGraphDeployment: the frontend, and a component for the workers of each pool.

    ``cluster`` is of a deployment that Dynamo's launcher wrote. Its operator tells the workers of each other.
    """
    components = []
    for kind, alike in groupby(cluster.deployment.processes, key=_kind):
        group = list(alike)
        if any(process.host for process in group):
            raise InputError(InputProblem("export", f"a worker {_MULTI_HOST}", "use another form"))
        components.append(_component(cluster, group, kind))
    return [
        *cluster.files(),
        {
            "apiVersion": "nvidia.com/v1beta1",
            "kind": "DynamoGraphDeployment",
            "metadata": {"name": cluster.name, "labels": MANAGED},
            "spec": {"components": components},
        },
    ]


def llmd_values(cluster: Cluster, config: EngineConfig) -> Object:
    """Values of the llm-d modelservice chart: decode workers, and prefill workers where there are pools."""
    deployment = cluster.deployment
    if not deployment.engine.startswith("vllm"):
        what = f"llm-d's chart serves vLLM, and this is {deployment.engine}"
        raise InputError(InputProblem("export", what, "use another form"))
    values: Object = {
        "modelArtifacts": _artifacts(cluster),
        "accelerator": {"type": _accelerator(deployment.device_kind)},
        "routing": {"servicePort": 8000, "proxy": {"enabled": bool(config.pools)}},
        "multinode": False,
    }
    workers = [process for process in deployment.processes if process.devices]
    for pool in reversed(POOLS):
        mine = [process for process in workers if process.role.startswith(pool)] if config.pools else workers
        if not config.pools and pool == "prefill":
            values[pool] = {"create": False}
            continue
        shape = config.pools[pool] if config.pools else config
        port = LLMD_TARGET_PORT if config.pools and pool == "decode" else 8000
        values[pool] = {
            "create": True,
            "replicas": len(mine) if config.pools else cluster.replicas,
            "parallelism": {"tensor": shape.tensor_parallel or 1, "data": shape.data_parallel or 1},
            "containers": [_llmd_container(cluster, mine[0], port)],
        }
    return values


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a process is to Dynamo's operator."""

    name: str
    type: str


def _kind(process: Process) -> _Kind:
    for pool in POOLS:
        if process.role.startswith(pool):
            return _Kind(f"{pool.capitalize()}Worker", pool)
    return _Kind("Worker", "worker") if process.devices else _Kind("Frontend", "frontend")


def _component(cluster: Cluster, group: list[Process], kind: _Kind) -> Object:
    process = group[0]
    container = cluster.container(process, name="main")
    # The operator finds ports, probes and addresses by itself.
    kept = ("name", "image", "command", "args", "resources", "volumeMounts")
    main = {key: container[key] for key in kept if key in container}
    main["env"] = [each for each in container.get("env", ()) if not each["name"].startswith("DYN_")]
    pod = {**cluster.pod(process), "containers": [main]}
    workers = 1 if kind.type == "frontend" else len(group)
    return {
        "name": kind.name,
        "type": kind.type,
        "replicas": cluster.replicas * workers,
        "podTemplate": {"spec": pod},
    }


def _artifacts(cluster: Cluster) -> Object:
    deployment = cluster.deployment
    claim = f"pvc://{cluster.name}-model/{deployment.model.strip('/').replace('/', '-')}"
    artifacts: Object = {
        "name": deployment.served_model,
        "uri": claim if deployment.folders else f"hf://{deployment.model}",
        "labels": {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": cluster.name},
    }
    if not deployment.folders:
        artifacts |= {"size": "1Ti", "authSecretName": f"{cluster.name}-{SECRET_SUFFIX}"}
    return artifacts


def _llmd_container(cluster: Cluster, process: Process, port: int) -> Object:
    deployment = cluster.deployment
    arguments = iter(cluster.arguments(process)[1:])  # the chart names the model
    own: list[str] = []
    for word in arguments:
        if word in _LLMD_FLAGS:
            next(arguments, None)
        else:
            own.append(_of_any_worker(word))
    container: Object = {
        "name": "vllm",
        "image": cluster.images.of(process),
        "modelCommand": "vllmServe",
        "args": own,
        "env": cluster.environment(process),
        "ports": [{"containerPort": port, "name": "http", "protocol": "TCP"}],
        "mountModelVolume": True,
    }
    resource = RESOURCES.get(deployment.device_kind)
    if resource == "cpu":
        container["resources"] = {"limits": {resource: str(process.devices)}}
    return container


def _of_any_worker(word: str) -> str:
    """The transfer between pools as every worker of one takes part in it: the chart has one text for all."""
    if "kv_connector" not in word:
        return word
    given = json.loads(word)
    given.pop("engine_id", None)
    return json.dumps({**given, "kv_role": "kv_both"})


def _accelerator(kind: DeviceKind) -> str:
    return {DeviceKind.CUDA: "nvidia", DeviceKind.ROCM: "amd"}.get(kind, "cpu")


def merged(base: Any, more: Any) -> Any:
    """One's own template over what was written: mappings by key, lists of named things by name.

    A list without names takes the place of the other; null takes a key away.
    """
    if isinstance(base, dict) and isinstance(more, dict):
        whole = {key: merged(base[key], more[key]) if key in more else base[key] for key in base}
        whole |= {key: value for key, value in more.items() if key not in base}
        return {key: value for key, value in whole.items() if value is not None}
    if isinstance(base, list) and isinstance(more, list) and _named(base) and _named(more):
        by_name = {each["name"]: each for each in more}
        own = [merged(each, by_name.pop(each["name"], {})) for each in base]
        return [*own, *by_name.values()]
    return more


def with_templates(objects: list[Object], templates: list[Object]) -> list[Object]:
    """Objects with templates merged into those of their kind and name; what fits none is added."""
    whole = list(objects)
    for template in templates:
        fits = [place for place, each in enumerate(whole) if _fits(template, each)]
        for place in fits:
            whole[place] = merged(whole[place], template)
        if not fits:
            whole.append(template)
    return whole


def _fits(template: Object, each: Object) -> bool:
    """Whether a template speaks of an object: of its kind, and of its name where it has one."""
    name = (template.get("metadata") or {}).get("name")
    alike = template.get("kind") == each.get("kind")
    return alike and name in {None, (each.get("metadata") or {}).get("name")}


def _named(items: list[Any]) -> bool:
    return all(isinstance(each, dict) and "name" in each for each in items)
