"""`gr2 kernels`: the GPU's kernels, compiled ahead of time."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr2.errors import MissingExtraError

if TYPE_CHECKING:
    from gr2.bundle import Bundle
    from gr2.decoding import CatalogTrie

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The kernels that rank on a GPU, compiled ahead of time.")


class Dtype(StrEnum):
    """What the model writes its logits in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@app.callback()
def kernels() -> None:
    """The kernels that rank on a GPU, compiled ahead of time."""


@app.command("compile")
def compile_(
    bundle: Annotated[Path, typer.Option(help="The bundle that will be served.", show_default=False)],
    target: Annotated[
        list[str],
        typer.Option(
            help="A generation of GPUs: sm_80 (A100), sm_90 (H100), sm_100 (B200) ... May be given several times."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write.", show_default="Triton's own cache")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What the model writes its logits in.")] = Dtype.FLOAT32,
    beams: Annotated[
        list[int] | None,
        typer.Option(help="Also searches of the bundle's catalogue with so many beams. May be given several times."),
    ] = None,
) -> None:
    """Compile every kernel that a bundle needs, so that the first requests do not wait for the compiler.

    Needs the extra `gpu`, and no GPU: run it where the server's image is built, with the torch and Triton that the
    server has. Kernels that are in FOLDER already are not compiled again. FOLDER may be moved and copied, and need
    not be writable for the server. With a C compiler here, the server needs none.

        gr2 kernels compile --bundle runs/shop/export --target sm_90 --out kernels/
        TRITON_CACHE_DIR=kernels/ gr2 serve --bundle runs/shop/export
    """
    from gr2.bundle import Bundle

    loaded = Bundle.load(bundle)
    try:
        from gr2.kernels.ahead import compile_kernels, compile_searches
    except ImportError as error:
        raise MissingExtraError("gr2 kernels compile", "gpu", error) from error
    model, limits = loaded.manifest.model, loaded.manifest.limits
    trie = _trie(loaded) if beams else None
    for each in target:
        done = compile_kernels(
            each,
            levels=model.levels,
            level_size=model.level_size,
            candidates=limits.max_candidates,
            normalization=model.normalization,
            dtype=dtype.value,
            folder=out,
        )
        kernels = len({one.result.hash for one in done})
        typer.echo(f"{each}: {kernels} kernels for up to {limits.max_candidates} candidates of {model.levels} codes")
        if beams and trie is not None:
            done = compile_searches(
                each, trie, beams=beams, normalization=model.normalization, dtype=dtype.value, folder=out
            )
            kernels = len({one.result.hash for one in done})
            typer.echo(f"{each}: {kernels} kernels for {trie.size} items and {', '.join(map(str, beams))} beams")


def _trie(bundle: Bundle) -> CatalogTrie:
    import numpy as np

    from gr2.decoding import CatalogTrie

    ids: list[Any] = list(bundle.catalog().ids)
    codes, _ = bundle.codebook().lookup(ids if isinstance(ids[0], str) else np.array(ids, dtype=np.int64))
    return CatalogTrie(np.ascontiguousarray(codes[np.lexsort(codes.T[::-1])]), bundle.manifest.model.level_size)
