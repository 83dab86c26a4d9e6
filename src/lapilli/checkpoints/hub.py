"""Models on the Hugging Face hub: found in its cache, or downloaded into it.

Only what is asked for by its id is downloaded, and never code or pickled weights. What is whole in
the cache is used without a question to the network; another state of a repository is another
revision, `org/name@revision`. The hub's own variables count: HF_HOME, HF_HUB_CACHE, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lapilli.checkpoints.original_spec import is_original
from lapilli.checkpoints.published import PUBLISHED
from lapilli.checkpoints.shards import weight_files
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError

WANTED = ("*.json", "model*.safetensors", "*.jinja", "MODEL_CARD.md", "tokenizer.model")
"""Files that are downloaded: numbers, weights, words and templates. Folders hold other formats."""

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"({_PART}/{_PART})")
_REVISION = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_MAX_CHARACTERS = 96


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, at a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repository + ("" if self.revision == "main" else f"@{self.revision}")


def hub_name(text: str) -> HubName | None:
    """Return what a short name, `org/name` or either with `@revision` stands for.

    None where it is no such name, and where `org` is a folder here: who mistypes `runs/model`
    means no repository.
    """
    name, at, revision = text.partition("@")
    if name in PUBLISHED:
        repository = PUBLISHED[name].hub_id
    else:
        repository = name
        is_id = _ID.fullmatch(name) and len(name) <= _MAX_CHARACTERS
        if not is_id or "--" in name or ".." in name or name.endswith(".git"):
            return None
        if Path(name.partition("/")[0]).is_dir():
            return None
    if not at:
        return HubName(repository)
    # The cache keeps revisions as files of these names.
    return HubName(repository, revision) if _is_revision(revision) else None


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


PICKLED = ("pytorch_model*.bin", "mm_projector.bin")
"""Files that are downloaded beside them by who allows it, where there are no safetensors."""


def find(name: HubName, *, allow_pickle: bool = False) -> Path:
    """Return the folder of a model in the hub's cache, downloaded if it is not there.

    Many processes may ask at the same time: the hub's library locks each file, so one of them
    downloads it and the others find it.

    Raises:
        CheckpointError: there is no such repository, it is not shown to this user, it holds no
            safetensors, the disk is full, or the hub cannot be reached.
    """
    return cached(name) or _download(name, allow_pickle)


def cached(name: HubName) -> Path | None:
    """Return the folder of a model in the hub's cache; None where it is not there, or not whole."""
    folder = _cached(name)
    return folder if folder is not None and _has_words(folder) else None


def find_tower(name: HubName, *, allow_pickle: bool = False) -> Path:
    """Return the folder of a vision tower in the hub's cache, downloaded if it is not there.

    Raises:
        CheckpointError: as `find`.
    """
    return cached_tower(name) or _download(name, allow_pickle)


def cached_tower(name: HubName) -> Path | None:
    """Return the folder of a vision tower in the hub's cache; None where it is not whole there."""
    folder = _cached(name)
    return folder if folder is not None and _has_pictures(folder) else None


def cached_base(name: HubName) -> Path | None:
    """Return the folder of a model or of a language model in the hub's cache; None where it is not
    whole there."""
    folder = _cached(name)
    words = ("tokenizer.json", "tokenizer.model")
    has_words = folder is not None and any((folder / file).exists() for file in words)
    return folder if has_words else None


def _cached(name: HubName) -> Path | None:
    """The folder in the cache, with all its weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name.repository, "config.json", revision=name.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        weights = weight_files(folder)
    except CheckpointError:
        return None
    return folder if all(path.exists() for path in weights) else None


def _has_words(folder: Path) -> bool:
    """Whether there is a tokenizer, and how pictures are prepared where the layout tells it."""
    if (folder / "tokenizer.json").exists() and _has_pictures(folder):
        return True
    has_words = (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists()
    return has_words and is_original(read_json(folder / "config.json"))


def _has_pictures(folder: Path) -> bool:
    pictures = ("processor.json", "preprocessor_config.json", "processor_config.json")
    return any((folder / file).exists() for file in pictures)


def _download(name: HubName, allow_pickle: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if os.environ.get("LOCAL_RANK", "0") != "0":
        disable_progress_bars()  # torchrun's processes share a terminal; the first one tells
    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        patterns = WANTED if _check_files(name, sizes, allow_pickle) else (*WANTED, *PICKLED)
        wanted = {file: size for file, size in sizes.items() if _is_wanted(file, patterns)}
        _check_room(name, wanted, info.sha)
        # One file after the other: a thread that downloads does not hear Ctrl-C.
        places = [
            hf_hub_download(name.repository, file, revision=info.sha)
            for file in sorted(wanted, key=wanted.__getitem__)
        ]
        # All is there: now the cache may learn what the revision stands for.
        hf_hub_download(name.repository, "config.json", revision=name.revision)
    except CheckpointError:
        raise
    except Exception as error:
        # Whatever the library and its HTTP client raise is told in our words: theirs hold
        # addresses, and those of a download are signed.
        raise CheckpointError(f"{name}: {_explained(error)}") from error
    return Path(places[0]).parent


def _is_wanted(file: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in file and any(fnmatch(file, pattern) for pattern in patterns)


def _check_files(name: HubName, sizes: dict[str, int], allow_pickle: bool) -> bool:
    """Whether there are safetensors; without them, pickles must be there and allowed."""
    if "config.json" not in sizes:
        raise CheckpointError(f"{name}: has no config.json, so it is no model folder; name another")
    if any(fnmatch(file, "model*.safetensors") for file in sizes):
        return True
    if allow_pickle and any(_is_wanted(file, PICKLED) for file in sizes):
        return False
    if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in sizes):
        raise CheckpointError(
            f"{name}: its weights are pickled, which can run code, and nothing was downloaded; "
            "name a repository with safetensors, or where you trust it, on a machine that holds "
            f"no secrets, run: lapilli convert {name} DST --to native --allow-pickle"
        )
    raise CheckpointError(f"{name}: holds no model.safetensors; name a repository with weights")


def _check_room(name: HubName, sizes: dict[str, int], commit: str | None) -> None:
    """Refuse what cannot fit before the first gigabyte, not after the last."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    missing = sum(
        size
        for file, size in sizes.items()
        if not isinstance(try_to_load_from_cache(name.repository, file, revision=commit), str)
    )
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if missing > free:
        raise CheckpointError(
            f"{name}: takes {missing / 1e9:.1f} GB, and {cache} has {free / 1e9:.1f} GB free; "
            "free some, or set HF_HUB_CACHE to another disk"
        )


def _explained(error: Exception) -> str:
    """What went wrong and what to do; the narrower kinds of the library's errors come first."""
    from huggingface_hub import constants, errors

    client_error = errors.HfHubHTTPError.__bases__[0]  # of the HTTP client, which has changed
    match error:
        case errors.GatedRepoError():
            return (
                "its owner shows it to those alone who agreed to the terms; agree on its page on "
                "the hub, and set HF_TOKEN to a token of yours"
            )
        case errors.RepositoryNotFoundError():
            return (
                "neither a folder here nor a repository that the hub shows you; check the name, "
                "or set HF_TOKEN if it is private"
            )
        case errors.RevisionNotFoundError():
            return "the repository has no such revision; name a branch, a tag or a commit"
        case errors.OfflineModeIsEnabled():
            return (
                f"not whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download "
                "it; unset that, or name a folder"
            )
        case errors.LocalEntryNotFoundError():
            return _UNREACHABLE
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return f"the hub refuses it ({status}); check that HF_TOKEN is valid and may read"
            return f"the hub answers {status}; try again later"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return (
                f"the disk of {constants.HF_HUB_CACHE} is full; free some, or set HF_HUB_CACHE to "
                "another disk. Files that came whole are kept"
            )
        case OSError(strerror=str(reason), filename=file) if error.errno:
            return f"{file or constants.HF_HUB_CACHE}: {reason}; set HF_HUB_CACHE to a folder"
        case _ if isinstance(error, client_error):
            return _UNREACHABLE
        case _:
            kind = type(error).__name__
            return f"the download broke ({kind}); call again, files that came whole are kept"


_UNREACHABLE = (
    "the hub cannot be reached, or the connection broke; check the network and call again: files "
    "that came whole are kept"
)
