"""`gr2 serve`: a bundle behind gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gr2.serving.config import ServeConfig
from gr2.serving.models.heap import share_arenas

__all__ = ["register"]

DEFAULTS = ServeConfig()


def register(app: typer.Typer) -> None:
    """Add `serve` to the application."""
    app.command("serve", rich_help_panel="Serve")(serve)


def serve(
    bundle: Annotated[Path, typer.Option(help="The folder that `gr2 export` wrote, or one of NAME/VERSION/ folders.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = DEFAULTS.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = DEFAULTS.port,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Requests handled at once.", show_default="the cores")
    ] = DEFAULTS.threads,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more are refused at once.")
    ] = DEFAULTS.queue,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: a GPU if it can be used, else the CPU and a line that says why.")
    ] = DEFAULTS.device,
    native: Annotated[
        bool, typer.Option("--native/--python", help="On a CPU: answer in the C++ core, or in Python.")
    ] = DEFAULTS.native,
    batch: Annotated[int, typer.Option(min=1, help="On a GPU: the most requests of a batch.")] = DEFAULTS.batch,
    batch_delay: Annotated[
        float, typer.Option(min=0, help="On a GPU: microseconds that a request waits for others.")
    ] = DEFAULTS.batch_delay,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds to finish accepted requests when stopped.")
    ] = DEFAULTS.grace,
    default: Annotated[
        str, typer.Option(help="Of several bundles, the one of requests that name none.")
    ] = DEFAULTS.default,
    poll: Annotated[
        float, typer.Option(min=0, help="Seconds between two looks for a new version of a bundle; 0 for none.")
    ] = DEFAULTS.poll,
    shadow: Annotated[
        str, typer.Option(help="A bundle of the repository to compare the default one's answers with.")
    ] = DEFAULTS.shadow,
    shadow_share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of answers that is compared.")
    ] = DEFAULTS.shadow_share,
    cert: Annotated[str, typer.Option(help="TLS: the certificate chain, a PEM file.")] = DEFAULTS.cert,
    key: Annotated[str, typer.Option(help="TLS: the certificate's key, a PEM file.")] = DEFAULTS.key,
    client_ca: Annotated[
        str, typer.Option(help="TLS: callers need a certificate of this authority, a PEM file.")
    ] = DEFAULTS.client_ca,
    tokens: Annotated[str, typer.Option(help="Callers need a token of this file; see `gr2 token`.")] = DEFAULTS.tokens,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen without TLS on more than loopback.")
    ] = DEFAULTS.insecure,
    gzip: Annotated[bool, typer.Option("--gzip", help="Accept compressed requests.")] = DEFAULTS.gzip,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="For /metrics and /healthz over HTTP; 0 takes a free one."),
    ] = DEFAULTS.metrics_port,
    metrics_host: Annotated[str, typer.Option(help="The address for it.")] = DEFAULTS.metrics_host,
    log_format: Annotated[str, typer.Option(help="Of the log on standard error: text or json.")] = DEFAULTS.log_format,
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error or critical.")] = DEFAULTS.log_level,
    traces: Annotated[
        bool, typer.Option("--traces", help="Export OpenTelemetry spans as the OTEL_* variables say (extra trace).")
    ] = DEFAULTS.traces,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes, on this port and those after it; one that dies is started again.")
    ] = 1,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C. Needs the base install only, no torch.

    Once it answers, one line of JSON on standard output says so and tells the address.

    Health checks and reflection are on the same port.

        gr2 serve --bundle runs/shop/export --port 50051
    """
    config = ServeConfig(
        host=host,
        port=port,
        threads=threads,
        queue=queue,
        grace=grace,
        device=device,
        native=native,
        batch=batch,
        batch_delay=batch_delay,
        default=default,
        poll=poll,
        shadow=shadow,
        shadow_share=shadow_share,
        cert=cert,
        key=key,
        client_ca=client_ca,
        tokens=tokens,
        insecure=insecure,
        gzip=gzip,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        log_format=log_format,
        log_level=log_level,
        traces=traces,
    )
    if processes > 1:
        from gr2.serving.processes import serve_processes

        serve_processes(bundle, config, processes)
        return
    share_arenas()
    from gr2.serving.server import serve as run_server

    run_server(bundle, config)
