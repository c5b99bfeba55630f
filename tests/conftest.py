"""What several files of tests use."""

import sys
from collections.abc import Callable

import pytest

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command and give its output; an exit status other than 0 must be expected."""

    from pyroflows import cli

    def run(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["pyroflows", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        assert (exit_info.value.code or 0) == status, captured.err
        return captured.err if status else captured.out

    return run
