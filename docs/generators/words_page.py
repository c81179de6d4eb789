"""The vocabulary of configurations: each word, its values, its meaning, and the engines that express it."""

from __future__ import annotations

from schema_tables import value_of

from autotune.domain.configs.config import POOLS, EngineConfig, Pool
from autotune.wiring import launchers

_NO_WORDS = {"engine", "extra_args", *POOLS}


def markdown() -> str:
    """A table with a row for each word; those of pools in a second one."""
    return f"{_table(EngineConfig, '')}\n\n## Words of a pool\n\n{_pools()}\n"


def _pools() -> str:
    wanted = " and ".join(f"`{pool}.`" for pool in POOLS)
    head = f"Written after {wanted}; what a pool does not say, the word without a pool says.\n\n"
    return head + _table(Pool, f"{POOLS[0]}.")


def _table(model: type[EngineConfig | Pool], prefix: str) -> str:
    schema = model.model_json_schema()
    by_engine = {name: launcher.traits.dimensions for name, launcher in sorted(launchers().items())}
    lines = ["| word | value | meaning | engines |", "| --- | --- | --- | --- |"]
    for word, told in schema["properties"].items():
        if word in _NO_WORDS:
            continue
        engines = ", ".join(name for name, words in by_engine.items() if prefix + word in words)
        value = value_of(told, schema.get("$defs", {}))
        lines.append(f"| `{word}` | {value} | {told.get('description', '')} | {engines} |")
    return "\n".join(lines)
