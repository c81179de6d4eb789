"""A deployment as Kubernetes objects: Deployments and Services, or a LeaderWorkerSet over several hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.deployment import Deployment, Process, filled
from autotune.domain.recommending.exports.images import FOLDER, Images, ports_within

Object = dict[str, Any]

RESOURCES = {DeviceKind.CUDA: "nvidia.com/gpu", DeviceKind.ROCM: "amd.com/gpu", DeviceKind.CPU: "cpu"}
START_CHECKS, START_PERIOD_S = 180, 10
"""An engine may take half an hour to load a large model before it is thought dead."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - within a pod
LEADER = "$(LWS_LEADER_ADDRESS)"
RANK = "{secret:LWS_WORKER_INDEX}"
"""Filled in as secrets are: by a variable that the pod has."""
SECRET_SUFFIX, MODEL_SUFFIX = "secrets", "model"
MANAGED = {"app.kubernetes.io/managed-by": "autotune"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the objects are called, how many replicas there are, and what their pods run."""

    deployment: Deployment
    name: str
    images: Images
    replicas: int = 1

    def kubernetes(self) -> list[Object]:
        """A Deployment and a Service for each process; workers' Services are headless: they are addressed."""
        if self.replicas > 1 and len(self.deployment.processes) > 1:
            what = "processes that address each other are not replicated one by one"
            raise InputError(
                InputProblem("--replicas", what, "export it once for each, by a --name of its own")
            )
        objects: list[Object] = [*self.files()]
        for process in self.deployment.processes:
            labels = self.labels(process.role)
            spec = {
                "replicas": self.replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": {**labels, **MANAGED}}, "spec": self.pod(process)},
            }
            objects.append(self._object("apps/v1", "Deployment", self.called(process.role), spec))
            objects.append(self._service(process.role, labels))
        return objects

    def leader_worker_set(self) -> list[Object]:
        """A group of pods over the hosts, started and restarted together, and the Service of its leader."""
        leader, *workers = self._hosts()
        labels = self.labels(leader.role)
        template: Object = {
            "size": 1 + len(workers),
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": {
                "metadata": {"labels": {**labels, **MANAGED}},
                "spec": self.pod(leader, group=True),
            },
            "workerTemplate": {"spec": self.pod(ranked(leader, workers) if workers else leader, group=True)},
        }
        spec = {"replicas": self.replicas, "leaderWorkerTemplate": template}
        whole = self._object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", self.name, spec)
        return [*self.files(), whole, self._service(leader.role, labels)]

    def _hosts(self) -> tuple[Process, ...]:
        """The processes of a group, the one that serves first; raises InputError for pools."""
        serving = self.deployment.serving
        others = [process for process in self.deployment.processes if process.role != serving.role]
        if any(process.host == serving.host for process in others):
            what = "a LeaderWorkerSet has one process a host, and this has pools with a router"
            raise InputError(InputProblem("export", what, "use --form kubernetes, dynamo or llm-d"))
        return serving, *sorted(others, key=lambda process: process.host)

    def pod(self, process: Process, *, group: bool = False) -> Object:
        """The pod of a process; ``group`` where it is of a LeaderWorkerSet, whose leader is addressed."""
        volumes: list[Object] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        if self.deployment.folders:
            claim = {"claimName": f"{self.name}-{MODEL_SUFFIX}", "readOnly": True}
            volumes.append({"name": "model", "persistentVolumeClaim": claim})
        if process.files:
            volumes.append({"name": "files", "configMap": {"name": self.called(process.role)}})
        return {"containers": [self.container(process, group=group)], "volumes": volumes}

    def container(self, process: Process, *, name: str = "engine", group: bool = False) -> Object:
        """The container of a process."""
        ports = ports_within(self.deployment, process.role)
        whole: Object = {"name": name, "image": self.images.of(process)}
        if process.program:
            whole["command"] = [_escaped(word) for word in process.program]
        whole["args"] = self.arguments(process, group=group)
        if env := self.environment(process, group=group):
            whole["env"] = env
        whole["ports"] = [
            {"name": _port_name(place), "containerPort": port} for place, port in enumerate(ports.values())
        ]
        if process.devices and (resource := RESOURCES.get(self.deployment.device_kind)):
            whole["resources"] = {"limits": {resource: str(process.devices)}}
        if process.ready_path:
            check = {"httpGet": {"path": process.ready_path, "port": _port_name(0)}}
            whole["startupProbe"] = {
                **check,
                "failureThreshold": START_CHECKS,
                "periodSeconds": START_PERIOD_S,
            }
            whole["readinessProbe"] = {**check, "periodSeconds": START_PERIOD_S}
        whole["volumeMounts"] = self._mounts(process)
        return whole

    def arguments(self, process: Process, *, group: bool = False) -> list[str]:
        """Arguments of a process: it listens on every address of its pod, and is found by its name."""
        named = LEADER if group else self.called(process.role)
        return [
            self.text(word, process, listens=EVERYWHERE if before.endswith("host") else named, group=group)
            for before, word in zip(("", *process.arguments), process.arguments, strict=False)
        ]

    def environment(self, process: Process, *, group: bool = False) -> list[Object]:
        """Variables of a process: the pod's address and the secrets first, for the others refer to them."""
        secret = f"{self.name}-{SECRET_SUFFIX}"
        env: list[Object] = []
        if any(f"{{host:{process.role}}}" in value for value in process.environment.values()):
            env.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
        for each in self.deployment.secrets:
            key: Object = {"name": secret, "key": each.name}
            if not each.required:
                key["optional"] = True
            env.append({"name": each.name, "valueFrom": {"secretKeyRef": key}})
        env += [
            {"name": key, "value": self.text(value, process, listens="$(POD_IP)", group=group)}
            for key, value in process.environment.items()
        ]
        return env

    def files(self) -> list[Object]:
        """A ConfigMap for each process that reads files."""
        return [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": self.called(process.role), "labels": MANAGED},
                "data": {
                    name: self.text(text, process, escaped=False) for name, text in process.files.items()
                },
            }
            for process in self.deployment.processes
            if process.files
        ]

    def called(self, role: str) -> str:
        """Name of a process's objects: the whole's for the one that serves."""
        return self.name if role == self.deployment.serving_role else f"{self.name}-{role}"

    def labels(self, role: str) -> dict[str, str]:
        """What a process's pods are known by."""
        return {"app.kubernetes.io/name": self.name, "app.kubernetes.io/component": role}

    def text(
        self,
        text: str,
        process: Process,
        *,
        listens: str = EVERYWHERE,
        group: bool = False,
        escaped: bool = True,
    ) -> str:
        """A text as a pod is to read it; ``listens`` is the address of the process itself."""

        def value(what: str, name: str) -> str:
            match what:
                case "host" if name == process.role:
                    return listens
                case "host":
                    return LEADER if group else self.called(name)
                case "port":
                    return str(ports_within(self.deployment, name.partition("/")[0])[name])
                case "file":
                    return f"{FOLDER}/{name}"
                case _:
                    return f"$({name})"

        return filled(text, value, _escaped if escaped else str)

    def _mounts(self, process: Process) -> list[Object]:
        mounts: list[Object] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - the pod's own
        for folder in self.deployment.folders:
            here, _, there = folder.partition(":")
            mounts.append(
                {
                    "name": "model",
                    "mountPath": there or here,
                    "subPath": here.strip("/").replace("/", "-"),
                    "readOnly": True,
                }
            )
        if process.files:
            mounts.append({"name": "files", "mountPath": FOLDER, "readOnly": True})
        return mounts

    def _service(self, role: str, labels: dict[str, str]) -> Object:
        ports = ports_within(self.deployment, role)
        serves = role == self.deployment.serving_role
        named = list(ports.items())[:1] if serves else list(ports.items())
        spec: Object = {
            "selector": labels,
            "ports": [
                {"name": _port_name(place), "port": port, "targetPort": _port_name(place)}
                for place, (_, port) in enumerate(named)
            ],
        }
        if not serves:
            spec["clusterIP"] = "None"
            # Workers look each other up before they are ready.
            spec["publishNotReadyAddresses"] = True
        return self._object("v1", "Service", self.called(role), spec)

    def _object(self, version: str, kind: str, name: str, spec: Object) -> Object:
        metadata = {"name": name, "labels": {"app.kubernetes.io/name": self.name, **MANAGED}}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def ranked(leader: Process, workers: Sequence[Process]) -> Process:
    """One process for every worker of a group: where theirs differ by their rank, the pod's index stands."""
    first = workers[0]
    rows = list(zip(leader.arguments, *(worker.arguments for worker in workers), strict=False))
    arguments = tuple(
        RANK if row == tuple(str(rank) for rank in range(len(row))) else token
        for row, token in zip(rows, first.arguments, strict=False)
    )
    return first.model_copy(update={"arguments": (*arguments, *first.arguments[len(rows) :])})


def dns_name(*parts: str) -> str:
    """A name that Kubernetes takes, of words that may hold anything."""
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:50].strip("-")
    return text if text[:1].isalpha() else f"a{text}"


def _port_name(place: int) -> str:
    return f"port-{place}" if place else "http"


def _escaped(text: str) -> str:
    """What Kubernetes would take for a variable, as it is meant."""
    return text.replace("$(", "$$(")
