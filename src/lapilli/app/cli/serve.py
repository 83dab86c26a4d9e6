"""`lapilli serve`: a model behind the OpenAI API."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from lapilli.app.cli.options import Debug, Device, Model, WrongCall, examples
from lapilli.errors import ConfigError

EXAMPLES = examples(
    "lapilli serve",
    "lapilli serve --model llava-1.5-7b --port 8080",
    "lapilli serve --host 0.0.0.0 --api-key a-long-secret",
    "lapilli serve --allow-image-hosts upload.wikimedia.org",
)
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "httpx", "llguidance")


def serve(
    model: Model = None,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Under which clients ask for the model; its own if left out."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen; others than this machine's own need --api-key.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="LAPILLI_API_KEY",
            metavar="KEY",
            help="A key that clients must give; repeatable. In the environment others on this "
            "machine do not see it.",
        ),
    ] = None,
    allow_image_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[,HOST...]",
            help="Fetch pictures from these hosts; repeatable. From none if left out.",
        ),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log a line for each request, without its words.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers made at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Further answers that may wait.")] = 64,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures in a request.")] = 16,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Of a request's pictures.")] = 40,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 32,
    max_held_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes that all requests may hold.")
    ] = 2048,
    max_seconds: Annotated[int, typer.Option(min=1, help="That an answer may take.")] = 300,
    debug: Debug = False,
) -> None:
    """Serve a model by the OpenAI API.

    It is safe as it stands: it listens on this machine alone, fetches nothing, logs nothing of what
    is asked, and bounds what a request may take. SIGTERM ends it once running answers are finished.
    """
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'lapilli[serve]'")
    from lapilli.app.serve.guard import is_loopback
    from lapilli.app.serve.limits import Limits
    from lapilli.app.serve.running import Service
    from lapilli.app.serve.running import serve as run

    keys = [key for key in api_key or [] if key.strip()]
    if len(keys) < len(api_key or []):
        raise WrongCall("--api-key is empty; give a key, or leave it out")
    if not is_loopback(host) and not keys:
        raise WrongCall(
            f"--host {host} lets others ask: give --api-key too, or listen on 127.0.0.1"
        )
    hosts = [host for given in allow_image_hosts or [] for host in given.split(",") if host]
    service = Service(
        model=model,
        device=device,
        name=name,
        host=host,
        port=port,
        keys=tuple(keys),
        image_hosts=tuple(hosts),
        logs_requests=log_requests,
        max_batch=max_batch,
        limits=Limits(
            body_bytes=max_body_mb * 2**20,
            held_bytes=max_held_mb * 2**20,
            images=max_images,
            pixels=max_megapixels * 1_000_000,
            waiting=max_waiting,
            answer_seconds=max_seconds,
        ),
    )
    run(service, announce=lambda text: typer.echo(f"serving {text}", err=True))
