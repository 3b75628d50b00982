"""Entry point of `holdfast` and `kubectl-holdfast`."""

import signal
import sys
from pathlib import Path
from types import FrameType

import typer

from holdfast_api import __version__
from holdfast_cli.checkpoints import checkpoints
from holdfast_cli.describe import describe
from holdfast_cli.expire import expire
from holdfast_cli.export import export
from holdfast_cli.import_ import import_
from holdfast_cli.samples import samples
from holdfast_cli.scrub import scrub
from holdfast_cli.verify import verify
from holdfast_store import retry

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Looks at the checkpoints of Holdfast training jobs. Exit codes: 0 fine, 1 something is wrong with a checkpoint, "
    "2 wrong usage, 3 the store cannot be used.",
)
app.command()(checkpoints)
app.command()(verify)
app.command()(scrub)
app.command()(expire)
app.command()(samples)
app.command()(describe)
app.command()(export)
app.command("import")(import_)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


def main() -> None:
    retry.without_a_line_per_try()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    # kubectl starts plugins as `kubectl-holdfast`; help should show what a person types.
    name = Path(sys.argv[0]).name
    app(prog_name="kubectl holdfast" if name.startswith("kubectl-") else "holdfast")


def _end(number: int, _: FrameType | None) -> None:
    """As Ctrl-C does: what was begun is taken away (an export's half-written files)."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
