"""The command line: `pyroflows fit`, `pyroflows sample`, `pyroflows score`."""

from __future__ import annotations

import sys
import warnings

from pyroflows._extras import needs_fit_extra

with needs_fit_extra("the command line"):
    import typer

    from pyroflows.cli.fit import fit_command
    from pyroflows.cli.sample import sample_command
    from pyroflows.cli.score import score_command

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fit normalizing flows to data, sample from them, and score data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command("fit")(fit_command)
app.command("sample")(sample_command)
app.command("score")(score_command)


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"pyroflows: {message}", file=sys.stderr)
            app()
    except (ImportError, ValueError) as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(1)
