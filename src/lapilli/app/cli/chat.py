"""`lapilli chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lapilli.app.cli.options import Debug, Device, Model, examples, is_file
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
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Talk about pictures.

    In the conversation, /image PATH shows another picture, /reset starts anew, /quit leaves.
    """
    from lapilli.assistant import MultimodalAssistant

    assistant = MultimodalAssistant(model, device=device)
    console = Console(stderr=True, highlight=False)
    if sys.stdin.isatty():
        console.print(COMMANDS, style="dim", markup=False)
    _Conversation(assistant, console, images or []).run()


class _Conversation:
    """The state between two lines: what was said, and pictures not yet spoken of."""

    def __init__(
        self, assistant: MultimodalAssistant, console: Console, images: list[Path]
    ) -> None:
        self.assistant = assistant
        self.console = console
        self.chat: Chat = assistant.chat(images)
        self.waiting: list[Path] = []

    def run(self) -> None:
        """Take lines until /quit or the end of the input."""
        prompt = "[bold]> [/bold]" if sys.stdin.isatty() else ""
        while True:
            try:
                line = self.console.input(prompt).strip()
            except EOFError:
                return
            if line == "/quit":
                return
            try:
                self._take(line)
            except LapilliError as error:
                self.console.print(f"error: {error}", style="red", markup=False)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            self._add_image(rest.strip())
        elif command == "/reset":
            self.chat = self.assistant.chat(())
            self.waiting = []
        elif command.startswith("/"):
            self.console.print(f"unknown command {command}: {COMMANDS}", markup=False)
        elif line:
            images, self.waiting = self.waiting, []
            for piece in self.chat.stream(line, images):
                typer.echo(piece, nl=False)
            typer.echo()

    def _add_image(self, path: str) -> None:
        if is_file(path):
            self.waiting.append(Path(path))
        else:
            self.console.print(f"error: {path or '/image'}: no such file", markup=False)
