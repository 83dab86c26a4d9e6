"""`lapilli chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lapilli.app.cli.options import (
    Base,
    Debug,
    Device,
    Model,
    Quantize,
    WrongCall,
    examples,
    is_file,
)
from lapilli.errors import LapilliError

if TYPE_CHECKING:
    from lapilli.assistant import Chat, MultimodalAssistant

EXAMPLES = examples(
    "lapilli chat photo.jpg",
    'echo "What is this?" | lapilli chat photo.jpg',
)
COMMANDS = "/image PATH shows a picture, /reset starts anew, /quit leaves"


def chat(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="Pictures to begin with.", show_default=False),
    ] = None,
    model: Model = None,
    base: Base = None,
    device: Device = "auto",
    quantize: Quantize = None,
    debug: Debug = False,
) -> None:
    """Talk about pictures.

    In the conversation, /image PATH shows another picture, /reset starts anew, /quit leaves.
    Without a terminal, each line of the input is one turn; the exit code is 1 if one failed.
    """
    for image in images or []:
        if not image.exists():
            raise WrongCall(f"{image}: no such file")
    from lapilli.assistant import MultimodalAssistant

    assistant = MultimodalAssistant(model, base=base, device=device, quantize=quantize)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if sys.stdin.isatty():
        console.print(COMMANDS, style="dim", markup=False)
    num_failed = _Conversation(assistant, console, images or []).run()
    if num_failed and not sys.stdin.isatty():
        raise typer.Exit(1)


class _Conversation:
    """The state between two lines: what was said, and pictures not yet spoken of."""

    def __init__(
        self, assistant: MultimodalAssistant, console: Console, images: list[Path]
    ) -> None:
        self.assistant = assistant
        self.console = console
        self.chat: Chat = assistant.chat(images)
        self.waiting: list[Path] = []

    def run(self) -> int:
        """Take lines until /quit or the end of the input; return how many failed."""
        num_failed = 0
        prompt = "[bold]> [/bold]" if sys.stdin.isatty() else ""
        while True:
            try:
                line = self.console.input(prompt).strip()
            except EOFError:
                return num_failed
            if line == "/quit":
                return num_failed
            try:
                self._take(line)
            except LapilliError as error:
                self.console.print(f"error: {error}", style="red", markup=False)
                num_failed += 1

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            self._add_image(rest.strip())
        elif command == "/reset":
            self.chat = self.assistant.chat(())
            self.waiting = []
        elif command.startswith("/"):
            raise WrongCall(f"unknown command {command}: {COMMANDS}")
        elif line:
            images, self.waiting = self.waiting, []
            for piece in self.chat.stream(line, images):
                typer.echo(piece, nl=False)
            typer.echo()

    def _add_image(self, path: str) -> None:
        if not is_file(path):
            raise WrongCall(f"{path or '/image'}: no such file; write /image PATH")
        self.waiting.append(Path(path))
