"""How command lines of engines are written from words, checked against a parser's flags, and read back."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.launch import EngineEnvironment

_SHELL = "|&;<>"
_FLAG = re.compile(r"--?[A-Za-z]")

Tokens = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTable:
    """Words that are flags of one engine.

    ``valued``: the flag that takes the word's value. ``switches``: the tokens for each state of a word that
    is on or off; none where the state is what the engine does anyway. ``aliases``: other spellings of flags,
    long form by short one; ``bare``: further flags that take no value; ``single``: ones that take just one;
    ``several``: ones that take any number.
    ``exact``: the parser takes no other spelling than these (click), neither ``_`` for ``-`` nor beginnings.
    """

    engine: str
    valued: Mapping[str, str]
    switches: Mapping[str, Mapping[bool, Tokens]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()
    single: frozenset[str] = frozenset()
    several: frozenset[str] = frozenset()
    exact: bool = False

    @property
    def words(self) -> frozenset[str]:
        """Words that this table can say."""
        return frozenset({*self.valued, *self.switches})

    def tokens(self, config: EngineConfig) -> dict[str, Tokens]:
        """Tokens by the word that asks for them, in the order of the vocabulary; words not here are left out.

        Raises InfeasibleConfigError for a state of a switch that no flag gives.
        """
        tokens: dict[str, Tokens] = {}
        for word, value in config.words.items():
            if word in self.valued:
                tokens[word] = (self.valued[word], str(value))
            elif word in self.switches:
                if value not in self.switches[word]:
                    raise InfeasibleConfigError(f"{self.engine}: no flag says {word}: {str(value).lower()}")
                tokens[word] = self.switches[word][value]
        return tokens

    def word_of(self, flag: str) -> str | None:
        """The word whose value a flag takes."""
        return next((word for word, known in self.valued.items() if known == flag), None)

    def state_of(self, flag: str) -> tuple[str, bool] | None:
        """The word and state that a flag without a value stands for."""
        states = ((word, state, said) for word, by in self.switches.items() for state, said in by.items())
        return next(((word, state) for word, state, said in states if said == (flag,)), None)

    def read(self, tokens: Sequence[str]) -> tuple[tuple[Option, ...], Tokens]:
        """Split a command line's tokens into options and what belongs to none.

        A flag that is not known here takes every token up to the next flag.
        """
        options: list[Option] = []
        loose: list[str] = []
        at = 0
        while at < len(tokens):
            if not _FLAG.match(tokens[at]):
                loose.append(tokens[at])
                at += 1
                continue
            name, equals, value = tokens[at].partition("=")
            flag = self._long_form(name)
            end = at + 1
            most = 0 if equals else self._most_values(flag, len(tokens))
            while end < len(tokens) and end - at <= most and not _FLAG.match(tokens[end]):
                end += 1
            values = (value,) if equals else tuple(tokens[at + 1 : end])
            options.append(Option(flag, values, tuple(tokens[at:end])))
            at = end
        return tuple(options), tuple(loose)

    def refuse_unknown(self, source: str, tokens: Tokens, environment: EngineEnvironment) -> None:
        """Raise InfeasibleConfigError for a flag, or a value, that the installed parser does not have."""
        if not environment.flags:
            return
        engine = f"{self.engine} {environment.version}"
        for option in self.read(tokens)[0]:
            flag = option.flag.partition(".")[0]
            if flag not in environment.flags:
                raise InfeasibleConfigError(f"{source}: {engine} has no flag {flag}")
            choices = environment.flags[flag]
            if wrong := [value for value in option.values if choices and value not in choices]:
                raise InfeasibleConfigError(
                    f"{source}: {flag} of {engine} cannot be {wrong[0]!r}; choices: {', '.join(choices)}"
                )

    @property
    def _without_value(self) -> frozenset[str]:
        said = (tokens for by in self.switches.values() for tokens in by.values())
        return self.bare | {tokens[0] for tokens in said if len(tokens) == 1}

    @property
    def _with_one_value(self) -> frozenset[str]:
        return self.single | frozenset(self.valued.values())

    def _most_values(self, flag: str, unlimited: int) -> int:
        if flag in self._without_value:
            return 0
        return 1 if flag in self._with_one_value else unlimited

    def _long_form(self, name: str) -> str:
        """Resolve what parsers resolve: short names, underscores, and beginnings that are unambiguous."""
        head, dot, key = name.partition(".")  # --json-flag.key: only the flag is spelt loosely
        if self.exact or not name.startswith("--"):
            return self.aliases.get(head, head) + dot + key
        flag = head.replace("_", "-")
        flag = self.aliases.get(flag, flag) + dot + key
        known = self._without_value | self._with_one_value | self.several
        begun = [each for each in known if each.startswith(flag)]
        return begun[0] if flag not in known and len(begun) == 1 else flag


@dataclass(frozen=True, slots=True)
class Option:
    """A flag in its long form with its values, and the tokens that wrote it."""

    flag: str
    values: Tokens
    tokens: Tokens


HOST_WORDS = frozenset({"power_limit_w", "graphics_clock_mhz"})
"""Words that no engine is told: whoever runs the bench sets them on the GPUs, whatever the engine."""


MODEL_WORD = "checkpoint"
"""The word that is the model itself: whoever writes a launch is given it as its context's model."""


def refuse_words(engine: str, config: EngineConfig, dimensions: frozenset[str]) -> None:
    """Raise InfeasibleConfigError naming the words that an engine cannot express: none is ever dropped."""
    known = dimensions | HOST_WORDS | {"extra_args"}
    strange = [word for word in config.words if word not in known]
    if strange:
        raise InfeasibleConfigError(f"{engine}: cannot express {', '.join(strange)}")


def split_command(command: str, engine: str) -> list[str]:
    """Tokens of one command line as a shell reads it; raises ValueError for what is no single command."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=_SHELL)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise ValueError(f"the command line cannot be read: {error}") from error
    if any(set(token) <= set(_SHELL) for token in tokens if token):
        raise ValueError(f"give the {engine} command alone, without pipes, redirections and other commands")
    return tokens
