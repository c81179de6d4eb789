"""Where a running engine takes requests: all that a load client needs to know of a launch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running engine takes requests; ``ignore_eos`` is false where it refuses that parameter.

    ``token_variable`` names the environment variable that holds a bearer token; empty: none is sent.
    """

    base_url: str
    model: str
    ignore_eos: bool = True
    token_variable: str = ""
