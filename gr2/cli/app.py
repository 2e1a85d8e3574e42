"""The root of the command line: the command groups, `--version`, and what an error looks like."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from gr2.cli import bench, data, demo, encode, info, kernels, report, rerank, serve, stages, token, top
from gr2.errors import Gr2Error
from gr2.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
demo.register(app)
stages.register(app)
encode.register(app)
serve.register(app)
token.register(app)
info.register(app)
rerank.register(app)
top.register(app)
app.add_typer(data.app, name="data")
app.add_typer(report.app, name="report")
app.add_typer(kernels.app, name="kernels")
app.add_typer(bench.app, name="bench", rich_help_panel="Serve")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gr2 {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn interaction logs into a small, fast re-ranker and serve it over gRPC.

    See the whole path on a synthetic shop, in a few minutes:

        gr2 demo

    On your own logs:

        gr2 run shop.toml                       every stage that is not up to date
        gr2 run shop.toml --from distill        only that stage and what follows
        gr2 serve --bundle runs/shop/export     gRPC; needs no torch
        gr2 rerank request.json --address 127.0.0.1:50051
    """


def main() -> None:
    """Run the command line. Exit codes: 0, 2 for an error that gr2 explains in one line, 130 for Ctrl-C."""
    try:
        app(prog_name="gr2")
    except Gr2Error as error:
        _fail(str(error))
    except OSError as error:
        # A full disk, a folder that cannot be written, a file that went away.
        reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
        _fail(reason if error.filename is None else f"{error.filename}: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # What writes weights and tokenizers is in Rust, and raises no OSError.
        if "(os error " not in str(error):
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"gr2: error: {message}\n")
    sys.exit(2)
