"""The flags of Dynamo's frontend and workers that are written here, and which of all are the frontend's."""

from __future__ import annotations

from launchers.options import FlagTable

FRONTEND = "dynamo.frontend"
MODEL = "--model"
MODE = "--disaggregation-mode"
EVENTS = "--kv-events-config"
TOOL_PARSER = "--dyn-tool-call-parser"
SERVED_MODEL_NAME = "--served-model-name"
HEADLESS = "--headless"
"""The last process of a worker over several hosts: it has ranks, and nothing that listens."""

TRTLLM_MODEL = "--model-path"
ENGINE_ARGS = "--extra-engine-args"
TRTLLM_BLOCK = "--kv-block-size"
PUBLISH_EVENTS = "--publish-kv-events"

ROUTER_MODE = "--router-mode"
NO_EVENTS = "--no-router-kv-events"

SYSTEM_PORT = "DYN_SYSTEM_PORT"
DISCOVERY = "DYN_DISCOVERY_BACKEND"

FRONTEND_TABLE = FlagTable(
    engine="dynamo",
    valued={},
    switches={},
    # frontend/frontend_args.py and common/configuration/groups/*.py of 1.6.1
    bare=frozenset(
        f"--{no}{name}"
        for no in ("", "no-")
        for name in (
            *("enforce-disagg", "load-aware", "serve-indexer", "use-remote-indexer"),
            *("router-kv-events", "router-replica-sync", "router-track-active-blocks"),
            *("router-track-output-blocks", "router-assume-kv-reuse", "router-track-prefill-tokens"),
            *("router-conditional-disagg", "enable-session-prefix-index", "kserve-grpc-server"),
            *("enable-anthropic-api", "strip-anthropic-preamble", "enable-streaming-tool-dispatch"),
            *("enable-streaming-reasoning-dispatch", "tokenizer-fallback", "dyn-debug-perf"),
        )
    ),
    single=frozenset(
        f"--{name}"
        for name in (
            *("router-mode", "router-min-initial-workers", "router-session-affinity-ttl-secs"),
            *("router-session-affinity-mode", "active-decode-blocks-threshold"),
            *("active-prefill-tokens-threshold", "active-prefill-tokens-threshold-frac"),
            *("router-kv-overlap-score-credit", "router-kv-overlap-score-credit-decay"),
            *("router-kv-overlap-score-weight", "router-prefill-load-scale", "router-temperature"),
            *("router-decode-active-request-weight", "router-host-cache-hit-weight"),
            *("router-disk-cache-hit-weight", "router-tracking-hash", "router-tracking-key-file"),
            *("router-tracking-key-id", "router-prefill-load-model", "router-ttl-secs"),
            *("router-approximate-cache-policy", "router-queue-threshold", "router-policy-config"),
            *("router-conditional-disagg-config", "router-prefill-policy", "router-decode-policy"),
            *("router-event-threads", "router-queue-policy", "router-predicted-ttl-secs"),
            *("shared-cache-multiplier", "shared-cache-type", "kv-cache-block-size"),
            *("http-host", "http-port", "tls-cert-path", "tls-key-path", "tls-client-ca-cert-path"),
            *("namespace-prefix", "migration-limit", "migration-max-seq-len", "model-name"),
            *("metrics-prefix", "grpc-metrics-port", "frontend-route-extension"),
            *("reasoning-field-name", "dyn-chat-processor", "dyn-preprocess-workers"),
            *("ais-attention-dp-size", "ais-backend", "ais-backend-version", "ais-model-path"),
            *("ais-moe-ep-size", "ais-moe-tp-size", "ais-mtp-seed", "ais-nextn", "ais-nextn-accept-rates"),
            *("ais-perf-config", "ais-system", "ais-tp-size"),
        )
    ),
    # Names that 1.6.1 still takes.
    aliases={
        f"--{no}{name}": f"--{no}router-{name}"
        for no in ("", "no-")
        for name in ("kv-events", "track-active-blocks", "track-output-blocks", "assume-kv-reuse")
    },
)
"""Flags that the frontend has and no worker; what both have is every worker's."""

FRONTEND_FLAGS = FRONTEND_TABLE.bare | FRONTEND_TABLE.single
OF_THE_ADDRESS = frozenset({"--http-host", "--http-port", "--tls-cert-path", "--tls-key-path"})
"""Where the frontend listens: no part of a configuration."""
