"""Exports: each form fits its schema, holds no secret and nothing of the bench's."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from referencing import Registry, Resource
from ruamel.yaml import YAML

from autotune import wiring
from autotune.adapters.files.recommendation_file import yaml_text
from autotune.domain.basics.errors import InputError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.deployment import Build, Deployment, deployment_of
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, LaunchSpec, ProcessSpec
from autotune.domain.recommending.exports.compose import compose_file
from autotune.domain.recommending.exports.images import Images
from autotune.domain.recommending.exports.kubernetes import Cluster, dns_name
from autotune.domain.recommending.exports.platforms import dynamo, kserve, llmd_values, merged, with_templates
from autotune.domain.recommending.exports.shell import command_lines, shell_script
from autotune.domain.studies.study import EngineSpec

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
CORE = "kubernetes-1.37.json#/$defs/io.k8s.api"
KINDS = {
    "Deployment": f"{CORE}.apps.v1.Deployment",
    "Service": f"{CORE}.core.v1.Service",
    "ConfigMap": f"{CORE}.core.v1.ConfigMap",
    "LeaderWorkerSet": "platforms.json#/$defs/LeaderWorkerSet",
    "InferenceService": "platforms.json#/$defs/InferenceService",
    "DynamoGraphDeployment": "platforms.json#/$defs/DynamoGraphDeployment",
}
TOKEN = "hf_" + "x" * 34
BENCH = (
    "127.0.0.1",
    "VLLM_NO_USAGE_STATS",
    "VLLM_CACHE_ROOT",
    "CUDA_VISIBLE_DEVICES",
    "DEV_MODE",
    "autotune-",
)


@lru_cache
def registry() -> Registry[Any]:
    names = ("kubernetes-1.37.json", "platforms.json", "compose-spec.json")
    documents = {name: json.loads((SCHEMAS / name).read_text()) for name in names}
    # None names its dialect but Compose's, which is the same.
    resources = {
        name: Resource.from_contents({"$schema": "https://json-schema.org/draft/2020-12/schema", **each})
        for name, each in documents.items()
    }
    return Registry().with_resources(resources.items())


def check(data: Any, schema: str) -> None:
    """Refuse data that does not fit, after the way through YAML that a reader goes."""
    (read,) = YAML(typ="safe").load_all(yaml_text([data]))
    assert read == json.loads(json.dumps(data))
    validator = Draft202012Validator({"$ref": schema}, registry=registry())
    problems = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(read)]
    assert not problems


def check_objects(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Objects by kind and name, each checked."""
    for each in objects:
        check(each, KINDS[each["kind"]])
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


def deployed(
    engine: str = "vllm",
    *,
    kind: DeviceKind = DeviceKind.CUDA,
    model: str = "some/model",
    args: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    **words: Any,
) -> Deployment:
    config = EngineConfig.model_validate({"engine": engine, **words})
    spec = EngineSpec(name=engine, args=args, env=env or {})
    return wiring.deployment_for(config, spec, model, version="0.32.0+x", kind=kind)


def cluster(of: Deployment, **more: Any) -> Cluster:
    return Cluster(of, "ours", Images(of, more.pop("images", {})), **more)


PLAIN = deployed(tensor_parallel=2, max_num_seqs=256, env={"HF_TOKEN": TOKEN, "VLLM_SERVER_DEV_MODE": "1"})
POOLS = {"prefill.workers": 1, "decode.workers": 2, "decode.tensor_parallel": 2, "kv_transfer": "nixl"}


def test_a_deployment_has_no_secret_and_nothing_of_the_bench() -> None:
    keys = ("--api-key", "sesame", f"--hf-token={TOKEN}", "--revision", "abc")
    found = deployed(args=keys, env={"MY_API_KEY": "sesame", "A": "1"}, model="some/model")
    text = found.model_dump_json()
    assert "sesame" not in text
    assert TOKEN not in text
    server = found.serving
    assert server.arguments[-9:-4] == (
        *("--api-key", "{secret:API_KEY}", "--hf-token={secret:HF_TOKEN}", "--revision", "abc"),
    )
    assert server.environment == {"A": "1"}
    assert {s.name: s.required for s in found.secrets} == {
        "HF_TOKEN": True,
        "API_KEY": True,
        "MY_API_KEY": True,
    }
    assert server.program == ("vllm", "serve")
    assert found.image == "vllm/vllm-openai:v0.32.0"


def test_shell_serves_where_it_is_told_and_asks_for_its_secrets() -> None:
    script = shell_script(PLAIN, ("a note",))
    assert script.splitlines()[0] == "#!/bin/sh"
    assert "# a note" in script
    assert ': "${HF_TOKEN:?' in script
    assert (
        'vllm serve some/model --tensor-parallel-size 2 --max-num-seqs 256 --host "$HOST" --port "$PORT"'
        in script
    )
    assert not [word for word in (*BENCH, TOKEN) if word in script]
    assert command_lines(PLAIN) == "vllm serve some/model --tensor-parallel-size 2 --max-num-seqs 256"


NASTY = "a b'\"$(touch owned)`touch owned`;$HOME\n{x}"


def echoing(*words: str, env: dict[str, str] | None = None) -> Deployment:
    """What prints its arguments and a variable, one to a line."""
    argv = ("printf", "%s|", *words)
    process = ProcessSpec(role="server", argv=argv, env=env or {}, devices=())
    spec = LaunchSpec(processes=(process,), serving_role="server", served_model="m")
    return deployment_of(spec, Build(engine="e", version="1", kind=DeviceKind.CPU, model="/m"))


def test_nothing_that_a_shell_reads_otherwise_is_lost_or_run(tmp_path: Path) -> None:
    script = shell_script(echoing(NASTY, "{port:server}", "{host:server}"))
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PORT": "81"}
    )
    assert done.stdout == f"{NASTY}|81|0.0.0.0|"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"A;touch owned": "1"}},
        {"files": {"../owned": "1"}},
        {"role": "$(touch owned)"},
        {"arguments": ["{port:nobody}"]},
        {"arguments": ["{file:nothing}"]},
    ],
)
def test_a_document_from_elsewhere_brings_no_names_that_are_more(change: dict[str, Any]) -> None:
    data = PLAIN.model_dump(mode="json")
    with pytest.raises(ValidationError):
        Deployment.model_validate({**data, "processes": [{**data["processes"][0], **change}]})


def test_a_placeholder_that_is_more_than_a_name_is_text(tmp_path: Path) -> None:
    script = shell_script(echoing("{secret:$(touch owned)}", '{secret:A"`touch owned`}'))
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == '{secret:$(touch owned)}|{secret:A"`touch owned`}|'
    assert not list(tmp_path.iterdir())


def test_shell_starts_pools_on_devices_of_their_own() -> None:
    script = shell_script(deployed("vllm-pd", **POOLS))
    assert "CUDA_VISIBLE_DEVICES=0 " in script
    assert "CUDA_VISIBLE_DEVICES=1,2 " in script
    assert "CUDA_VISIBLE_DEVICES=3,4 " in script
    assert "UCX_PROTO_INFO" not in script
    assert script.rstrip().endswith("wait")
    assert 'python3 -m autotune.adapters.engines.pd_router --host "$HOST" --port "$PORT"' in script
    subprocess.run(["sh", "-n", "-c", script], check=True)


def test_compose_fits_the_specification() -> None:
    file = compose_file(PLAIN, Images(PLAIN))
    check(file, "compose-spec.json")
    server = file["services"]["server"]
    assert server["env_file"] == [{"path": ".env", "required": True}]
    assert server["ports"] == ["${PORT:-8000}:8000"]
    assert server["command"][-4:] == ["--host", "0.0.0.0", "--port", "8000"]
    reserved = server["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}]
    assert not [word for word in (*BENCH, TOKEN) if word in json.dumps(file)]
    odd = compose_file(echoing("$HOME"), Images(PLAIN, {"": "image"}))
    assert odd["services"]["server"]["command"][1] == "$$HOME"


def test_compose_starts_pools_and_files() -> None:
    pools = deployed("vllm-pd", **POOLS)
    file = compose_file(pools, Images(pools, {"router": "ours/router:1"}))
    check(file, "compose-spec.json")
    ids = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for role, service in file["services"].items()
        if role != "router"
    ]
    assert ids == [["0"], ["1", "2"], ["3", "4"]]
    files = deployed("trtllm", max_num_seqs=8, prefix_caching=False)
    written = compose_file(files, Images(files))
    check(written, "compose-spec.json")
    assert written["configs"]["server-options-yaml"]["content"]
    assert "/etc/autotune/options.yaml" in written["services"]["server"]["command"]


def test_kubernetes_fits_its_openapi() -> None:
    found = check_objects(cluster(PLAIN, replicas=3).kubernetes())
    assert set(found) == {"Deployment/ours", "Service/ours"}
    spec = found["Deployment/ours"]["spec"]
    assert spec["replicas"] == 3
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert container["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "ours-secrets", "key": "HF_TOKEN"}}}
    ]
    assert container["args"][-4:] == ["--host", "0.0.0.0", "--port", "8000"]
    assert not [word for word in (*BENCH, TOKEN) if word in json.dumps(found)]


def test_kubernetes_mounts_a_folder_with_the_model() -> None:
    local = deployed(model="/srv/models/mine", kind=DeviceKind.CPU)
    (container,) = check_objects(cluster(local).kubernetes())["Deployment/ours"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["volumeMounts"][1] == {
        "name": "model",
        "mountPath": "/srv/models/mine",
        "subPath": "srv-models-mine",
        "readOnly": True,
    }
    assert container["resources"] == {"limits": {"cpu": "1"}}
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]


def test_kubernetes_pools_find_each_other_by_name() -> None:
    pools = deployed("vllm-pd", **POOLS)
    with pytest.raises(InputError, match="autotune's own router"):
        cluster(pools).kubernetes()
    found = check_objects(cluster(pools, images={"router": "ours/router:1"}).kubernetes())
    router = found["Deployment/ours"]["spec"]["template"]["spec"]["containers"][0]
    assert "http://ours-decode-1:8000" in router["args"]
    assert found["Service/ours-decode-1"]["spec"]["clusterIP"] == "None"
    worker = found["Deployment/ours-decode-0"]["spec"]["template"]["spec"]["containers"][0]
    by_name = {each["name"]: each for each in worker["env"]}
    assert by_name["VLLM_NIXL_SIDE_CHANNEL_HOST"]["value"] == "$(POD_IP)"
    assert next(iter(by_name)) == "POD_IP"
    assert by_name["VLLM_NIXL_SIDE_CHANNEL_PORT"]["value"] == "8001"
    with pytest.raises(InputError, match="not replicated"):
        cluster(pools, replicas=2).kubernetes()


def over_hosts(hosts: int) -> Deployment:
    """A server of SGLang's over several hosts."""
    launcher = wiring.launcher_of("sglang")
    devices = tuple(
        Device(DeviceKind.CUDA, place % 8, "GPU", f"gpu-{place}", 0) for place in range(8 * hosts)
    )
    environment = EngineEnvironment(
        engine="sglang", executable=Path("sglang"), version="1", kind=DeviceKind.CUDA, flags={}
    )
    context = LaunchContext(model="some/model", environment=environment, devices=devices)
    config = EngineConfig(engine="sglang", tensor_parallel=8 * hosts)
    build = Build(engine="sglang", version="1", kind=DeviceKind.CUDA, model="some/model", image="sglang:1")
    return deployment_of(launcher.launch_spec(config, context), build)


def test_leader_worker_set_spans_hosts() -> None:
    wide = over_hosts(3)
    found = check_objects(cluster(wide).leader_worker_set())
    template = found["LeaderWorkerSet/ours"]["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 3
    leader = template["leaderTemplate"]["spec"]["containers"][0]
    worker = template["workerTemplate"]["spec"]["containers"][0]
    for each, rank in ((leader, "0"), (worker, "$(LWS_WORKER_INDEX)")):
        args = each["args"]
        assert args[args.index("--node-rank") + 1] == rank
        assert args[args.index("--dist-init-addr") + 1].startswith("$(LWS_LEADER_ADDRESS):")
        assert args[args.index("--host") + 1] == "0.0.0.0"
        assert each["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    with pytest.raises(InputError, match="3"):
        shell_script(wide)
    with pytest.raises(InputError, match="3"):
        compose_file(wide, Images(wide))
    one = check_objects(cluster(PLAIN).leader_worker_set())["LeaderWorkerSet/ours"]
    assert one["spec"]["leaderWorkerTemplate"]["size"] == 1


def test_kserve_takes_one_container() -> None:
    found = check_objects(kserve(cluster(PLAIN)))
    (container,) = found["InferenceService/ours"]["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    with pytest.raises(InputError, match="one predictor"):
        kserve(cluster(deployed("vllm-pd", **POOLS), images={"": "x", "router": "x"}))


def test_dynamo_has_a_component_for_each_pool() -> None:
    pools = deployed("dynamo", **POOLS)
    found = check_objects(dynamo(cluster(pools)))
    components = {c["name"]: c for c in found["DynamoGraphDeployment/ours"]["spec"]["components"]}
    assert {name: (c["type"], c["replicas"]) for name, c in components.items()} == {
        "PrefillWorker": ("prefill", 1),
        "DecodeWorker": ("decode", 2),
        "Frontend": ("frontend", 1),
    }
    main = components["DecodeWorker"]["podTemplate"]["spec"]["containers"][0]
    assert main["command"] == ["python3", "-m", "dynamo.vllm"]
    assert main["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert not [word for word in (*BENCH, "DYN_") if word in json.dumps(found)]


def test_llmd_values_fit_the_chart() -> None:
    alone = llmd_values(cluster(PLAIN), EngineConfig(engine="vllm", tensor_parallel=2))
    check(alone, "platforms.json#/$defs/llm-d")
    assert alone["prefill"] == {"create": False}
    assert alone["decode"]["parallelism"] == {"tensor": 2, "data": 1}
    (container,) = alone["decode"]["containers"]
    assert container["args"] == ["--max-num-seqs", "256"]
    assert alone["modelArtifacts"]["uri"] == "hf://some/model"
    config = EngineConfig.model_validate({"engine": "vllm-pd", **POOLS})
    pools = deployed("vllm-pd", **POOLS)
    values = llmd_values(cluster(pools), config)
    check(values, "platforms.json#/$defs/llm-d")
    assert (values["decode"]["replicas"], values["prefill"]["replicas"]) == (2, 1)
    assert values["routing"]["proxy"]["enabled"]
    assert values["decode"]["containers"][0]["ports"][0]["containerPort"] == 8200
    transfer = next(a for a in values["decode"]["containers"][0]["args"] if "kv_connector" in a)
    assert json.loads(transfer)["kv_role"] == "kv_both"
    assert "engine_id" not in transfer
    with pytest.raises(InputError, match="serves vLLM"):
        llmd_values(cluster(over_hosts(1)), EngineConfig(engine="sglang"))


def test_templates_are_merged_by_kind_and_name_or_added() -> None:
    objects = cluster(PLAIN).kubernetes()
    pod = {
        "spec": {
            "nodeSelector": {"gpu": "h200"},
            "containers": [{"name": "engine", "imagePullPolicy": "Always"}],
        }
    }
    disruption = {"kind": "PodDisruptionBudget", "metadata": {"name": "ours"}}
    whole = with_templates(objects, [{"kind": "Deployment", "spec": {"template": pod}}, disruption])
    found = {each["kind"]: each for each in whole}
    check(found["Deployment"], KINDS["Deployment"])
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["imagePullPolicy"] == "Always"
    assert container["image"] == "vllm/vllm-openai:v0.32.0"
    assert found["PodDisruptionBudget"] == disruption
    assert merged({"a": 1, "b": [1]}, {"a": None, "b": [2]}) == {"b": [2]}


def test_names_are_dns_names() -> None:
    assert dns_name("My Study/../é", "SLA_1") == "my-study-sla-1"
    assert dns_name("9") == "a9"


def test_a_schema_refuses_what_it_does_not_know() -> None:
    for objects in (cluster(PLAIN).kubernetes(), cluster(PLAIN).leader_worker_set(), kserve(cluster(PLAIN))):
        strange = merged(objects[0], {"spec": {"strange": 1}})
        with pytest.raises(AssertionError, match="strange"):
            check(strange, KINDS[strange["kind"]])
    file = compose_file(PLAIN, Images(PLAIN))
    with pytest.raises(AssertionError, match="strange"):
        check(merged(file, {"services": {"server": {"strange": 1}}}), "compose-spec.json")


def test_without_an_image_one_is_asked_for() -> None:
    found = deployed("transformers")
    with pytest.raises(InputError, match="no image"):
        compose_file(found, Images(found))
    assert cluster(found, images={"": "ours:1"}).kubernetes()[0]["spec"]["template"]["spec"]["containers"]
