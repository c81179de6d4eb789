"""Reads the command lines of a disaggregated engine back: a piece of shell, and workers that are alike."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.domain.configs.config import POOLS, Pool
from launchers.options import Tokens

Words = Mapping[str, Any]
"""Words of one worker, ``extra_args`` among them."""

_ENDS = frozenset("&;\n")
_OF_POOLS = frozenset(Pool.model_fields) - {"workers"}


def commands(text: str) -> list[Tokens]:
    """The commands of a piece of shell, each as its tokens; raises ValueError for what is no such piece.

    They are apart by a line's end, ``&``, ``&&`` or ``;``; lines of comments are left out.
    """
    lines = text.replace("\\\n", " ").splitlines()
    told = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    lexer = shlex.shlex(told, posix=True, punctuation_chars="&;\n|<>")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise ValueError(f"the command lines cannot be read: {error}") from error
    found: list[list[str]] = [[]]
    for token in tokens:
        if token and set(token) <= _ENDS:
            found.append([])
        else:
            found[-1].append(token)
    return [tuple(command) for command in found if command]


def joined(workers: Mapping[str, Sequence[Words]]) -> dict[str, Any]:
    """Words of both pools together, and how many workers each has: a pool's own where the two differ.

    Raises ValueError for a pool without a worker, for one whose workers differ, and where the pools differ in
    what no pool can have for itself.
    """
    if missing := [pool for pool in POOLS if not workers.get(pool)]:
        raise ValueError(f"no command line starts a {' or a '.join(missing)} worker")
    shapes = {pool: alike(pool, workers[pool]) for pool in POOLS}
    words: dict[str, Any] = {f"{pool}.workers": len(workers[pool]) for pool in POOLS}
    for word in dict.fromkeys(word for shape in shapes.values() for word in shape):
        values = [shape.get(word) for shape in shapes.values()]
        if values[0] == values[1]:
            words[word] = values[0]
        elif word not in _OF_POOLS:
            raise ValueError(f"the pools differ in {word}, which no pool has for itself")
        else:
            words |= {f"{pool}.{word}": shape[word] for pool, shape in shapes.items() if word in shape}
    return words


def alike(pool: str, workers: Sequence[Words]) -> Words:
    """Words of each worker of a pool; raises ValueError where they differ."""
    if any(worker != workers[0] for worker in workers):
        raise ValueError(f"the {pool} workers differ from each other")
    return workers[0]
