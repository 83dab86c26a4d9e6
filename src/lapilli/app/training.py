"""`lapilli train`: a recipe, or a folder of them in order, each in its own processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from lapilli.app.drawing import DrawnData, files_left_out, make_drawn
from lapilli.config import from_dict, override, read_toml
from lapilli.errors import ConfigError, LapilliError
from lapilli.runtime import held_alone
from lapilli.train.recipe import Recipe, SourceRecipe

DATA_RECIPE = "data.toml"


def train_recipes(
    path: Path, *, out: Path, settings: Sequence[str] = (), resume: bool = True
) -> None:
    """Run a recipe file, or the numbered recipes of a folder in order.

    What is finished is not done again; what was killed goes on from its last checkpoint.

    Args:
        out: each stage gets a folder in it, named as its recipe; drawn data go to `out/data`.
        settings: "key=value" on top of every stage's recipe; "drawn.key=value" for the data.
        resume: False refuses to go on in a folder that holds work.

    Raises:
        ConfigError: a recipe is missing or wrong; nothing was done.
        DataError: the drawn data were made with other settings, or records are missing or wrong.
        LapilliError: a training process failed, or another training works in `out`.
    """
    files = _in_order(path) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise ConfigError(f"{path}: no recipe (a .toml file, or a folder of numbered ones)")
    own = [s for s in settings if not s.startswith("drawn.")]
    recipes = [(file, _read(file, own)) for file in files]
    if not resume and any((out / file.stem).exists() for file in files):
        raise ConfigError(f"{out}: holds earlier work; choose another --out or leave --no-resume")
    if "RANK" in os.environ:  # a worker, whose parent holds the folder
        _train(path, recipes, out, settings, lock=None)
        return
    with held_alone(out) as lock:
        _train(path, recipes, out, settings, lock=lock)


def _train(
    path: Path,
    recipes: list[tuple[Path, Recipe]],
    out: Path,
    settings: Sequence[str],
    lock: int | None,
) -> None:
    """Run the recipes; `lock` is the descriptor that holds `out`, None in a worker."""
    own = [s for s in settings if not s.startswith("drawn.")]
    folder = path if path.is_dir() else path.parent
    if (folder / DATA_RECIPE).exists():
        if lock is not None:
            make_drawn(_read_drawn(folder / DATA_RECIPE, settings), out / "data")
        absent = files_left_out(out / "data")
        recipes = [(file, _without(absent, file, recipe)) for file, recipe in recipes]
    elif len(own) < len(settings):
        raise ConfigError(f"{folder}: has no {DATA_RECIPE}, so there is no drawn.KEY to set")
    for file, recipe in recipes:
        if (out / file.stem / "model" / "config.json").exists():
            Console(stderr=True).print(f"{file.stem}: finished before")
        elif recipe.run.processes > 1 and lock is not None:
            _launch(file, recipe, out, own, lock)
        else:
            _run_here(file, recipe, out)


def _in_order(folder: Path) -> list[Path]:
    """Return the recipes of a folder that begin with a number, by that number."""
    found = [(int(n[0]), f) for f in folder.glob("*.toml") if (n := re.match(r"\d+", f.name))]
    return [file for _, file in sorted(found)]


def _read(file: Path, settings: Sequence[str]) -> Recipe:
    table = read_toml(file)
    for setting in settings:
        table = override(table, setting)
    return from_dict(Recipe, table, str(file))


def _without(absent: frozenset[str], file: Path, recipe: Recipe) -> Recipe:
    """Return a recipe without the records that were not made."""

    def made(sources: Sequence[SourceRecipe]) -> tuple[SourceRecipe, ...]:
        return tuple(source for source in sources if str(source.path) not in absent)

    if not (sources := made(recipe.data.sources)):
        raise ConfigError(f"{file}: none of its sources were made; change {DATA_RECIPE}")
    words = tuple(path for path in recipe.model.words_from if str(path) not in absent)
    return replace(
        recipe,
        data=replace(recipe.data, sources=sources, validation=made(recipe.data.validation)),
        model=replace(recipe.model, words_from=words),
    )


def _read_drawn(file: Path, settings: Sequence[str]) -> DrawnData:
    table = read_toml(file)
    for setting in settings:
        if setting.startswith("drawn."):
            table = override(table, setting.removeprefix("drawn."))
    data = from_dict(DrawnData, table, str(file))
    return replace(
        data, photos=_if_here(data.photos, "photos"), books=_if_here(data.books, "books")
    )


def _if_here(folder: Path | None, name: str) -> Path | None:
    if folder is None or folder.exists():
        return folder
    Console(stderr=True).print(f"{folder}: not here; making the data without {name}")
    return None


def _launch(file: Path, recipe: Recipe, out: Path, settings: Sequence[str], lock: int) -> None:
    """Run one stage in `recipe.run.processes` processes on this machine, which hold the folder as
    long as they live."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(recipe.run.processes), "-m", "lapilli.app.cli.main"]
    command += ["train", str(file), "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    threads = max(1, (os.cpu_count() or 1) // recipe.run.processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    held = [lock] if os.name == "posix" else []
    status = _wait(subprocess.Popen(command, env=environment, pass_fds=held))
    if status:
        raise LapilliError(
            f"{file.stem}: a training process ended with status {status}; the lines above say why. "
            "The same command goes on from the last checkpoint."
        )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the status of a stage's processes; a signal to end this process ends them first.

    They run in sessions of their own, where the terminal's Ctrl-C does not reach them.

    Raises:
        KeyboardInterrupt, LapilliError: they were ended by SIGINT, or by SIGTERM.
    """
    caught: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        caught.append(number)
        process.terminate()

    # Under nohup in the background a shell ignores SIGINT; so do we.
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        status = process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if signal.SIGINT in caught:
        raise KeyboardInterrupt
    if caught:
        raise LapilliError("stopped; the same command goes on from the last checkpoint")
    return status


def _run_here(file: Path, recipe: Recipe, out: Path) -> None:
    from lapilli.train import parallel
    from lapilli.train.stages import run_stage

    try:
        run_stage(recipe, out / "data", out / file.stem)
    finally:
        parallel.leave()
