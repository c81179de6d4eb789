"""Exit codes of errors that no command expects."""

from __future__ import annotations

import pytest

from autotune.cli import app as cli
from autotune.domain.basics.errors import BenchError, InputError, InputProblem


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError(InputProblem("x.yaml", "is wrong", "mend it")), 2),
        (BenchError("the port is taken"), 3),
        (KeyError("a bug is no verdict"), 3),
    ],
)
def test_an_error_is_told_and_ends_with_the_code_of_its_kind(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert str(error) in capsys.readouterr().err
