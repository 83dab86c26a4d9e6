"""The entry point: the verbs, and what a failure looks like from outside."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from lapilli import __version__
from lapilli.app.cli import ask, chat, convert, data, describe, models, serve, train
from lapilli.app.cli import eval as evaluating
from lapilli.app.cli.options import Settings, WrongCall, examples
from lapilli.errors import LapilliError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: the work was done; it failed; the call was wrong; Ctrl-C."""

# Without rich markup, help and errors are plain lines that read the same in a pipe.
app = typer.Typer(
    name="lapilli",
    help="Ask about pictures, and build, train and measure the models that answer.",
    epilog=examples(
        'lapilli ask photo.jpg "What is in this picture?"',
        "lapilli describe photos/ --alt",
        "lapilli VERB --help",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(epilog=ask.EXAMPLES)(ask.ask)
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=describe.EXAMPLES)(describe.describe)
app.command(epilog=train.EXAMPLES)(train.train)
app.command("eval", epilog=evaluating.EXAMPLES)(evaluating.evaluate)
app.add_typer(data.app, name="data")
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.add_typer(models.app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lapilli {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (of this process, if `arguments` is None) and exit."""
    settings = Settings()
    warnings.showwarning = _show_warning
    try:
        app(args=arguments, obj=settings)
    except (LapilliError, OSError) as error:
        if settings.debug:
            raise
        typer.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(WRONG if isinstance(error, WrongCall) else FAILED)
    except SystemExit as done:
        if done.code == INTERRUPTED:  # Typer leaves without a word
            typer.echo("\nstopped", err=True)
        raise
    sys.exit(DONE)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Python's own way adds a line of code, which says nothing to whoever only called it."""
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


if __name__ == "__main__":
    main()
