"""Vision towers that models name: published ones, of which the numbers are known, and others that
lie in a folder or in the hub's cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lapilli.checkpoints import hub
from lapilli.checkpoints.parts import read_tower
from lapilli.checkpoints.weights import Source
from lapilli.errors import CheckpointError
from lapilli.model.spec import VisionSpec
from lapilli.processor.images import ImageSettings


@dataclass(frozen=True)
class NamedTower:
    """A tower, all of whose layers run.

    Attributes:
        images: how pictures are prepared for it.
        weights: None where they are not on this disk.
    """

    spec: VisionSpec
    images: ImageSettings
    weights: Source | None = None


_CLIP = VisionSpec(image_size=224, feature_layer=-1)
_SIGLIP = VisionSpec(
    image_size=224, patch_size=16, width=768, num_layers=12, num_heads=12, mlp_width=3072,
    activation="gelu_tanh", norm_eps=1e-6, has_class_token=False, has_pre_norm=False,
    has_patch_bias=True, feature_layer=-1,
)  # fmt: skip


def _published(spec: VisionSpec) -> NamedTower:
    if spec.has_class_token:
        mean = (0.48145466, 0.4578275, 0.40821073)
        std = (0.26862954, 0.26130258, 0.27577711)
        return NamedTower(spec, ImageSettings(spec.image_size, "crop", mean, std))
    half = (0.5, 0.5, 0.5)
    return NamedTower(spec, ImageSettings(spec.image_size, "squash", half, half))


PUBLISHED_TOWERS = {
    "openai/clip-vit-large-patch14-336": _published(replace(_CLIP, image_size=336)),
    "openai/clip-vit-large-patch14": _published(_CLIP),
    "openai/clip-vit-base-patch32": _published(
        replace(_CLIP, patch_size=32, width=768, num_layers=12, num_heads=12, mlp_width=3072)
    ),
    "google/siglip-so400m-patch14-384": _published(
        replace(
            _SIGLIP, image_size=384, patch_size=14, width=1152, num_layers=27, num_heads=16,
            mlp_width=4304,
        )
    ),
    "google/siglip-base-patch16-224": _published(_SIGLIP),
}  # fmt: skip
"""By their ids on the hub."""


def named_tower(name: str, folder: Path) -> NamedTower:
    """Return the tower that a model folder names; nothing is downloaded.

    Args:
        name: a folder, from the model folder on, or an id on the hub.
        folder: the model's.

    Raises:
        CheckpointError: it is neither published nor on this disk, or it is damaged.
    """
    place = _folder_here(folder / name)
    if place is None:
        wanted = hub.hub_name(name)
        place = hub.cached_tower(wanted) if wanted is not None else None
    if place is not None:
        return _read(place)
    if name not in PUBLISHED_TOWERS:
        raise no_tower(name, folder)
    return PUBLISHED_TOWERS[name]


def asked_tower(name: str | Path) -> NamedTower:
    """Return a tower that the user asked for: a folder, or an id on the hub, which is downloaded
    unless it is in the hub's cache.

    Raises:
        CheckpointError: there is no such tower, it is damaged, or it cannot be downloaded.
    """
    return _read(find_tower(name))


def find_tower(name: str | Path, *, allow_pickle: bool = False) -> Path:
    """Return the folder of a tower that the user asked for, downloaded if it is the hub's.

    Args:
        allow_pickle: download pickled weights, too.

    Raises:
        CheckpointError: there is no such tower, or it cannot be downloaded.
    """
    place = _folder_here(Path(name).expanduser())
    if place is not None:
        return place
    wanted = hub.hub_name(name) if isinstance(name, str) else None
    if wanted is None:
        raise CheckpointError(
            f"{name}: neither a vision tower's folder nor an id on the hub; name one"
        )
    return hub.find_tower(wanted, allow_pickle=allow_pickle)


def no_tower(name: str, folder: Path) -> CheckpointError:
    """What to say where a model's tower is not here."""
    return CheckpointError(
        f"{folder}: its vision tower {name!r} is not on this disk, and nothing is downloaded "
        "unless asked for; name a folder, or an id on the hub, to load as vision_tower, or to "
        "lapilli convert as --vision-tower"
    )


def _folder_here(path: Path) -> Path | None:
    try:
        return path if (path / "config.json").is_file() else None
    except (OSError, ValueError):  # a name that no file may have
        return None


def _read(folder: Path) -> NamedTower:
    tower = read_tower(folder, -1)
    return NamedTower(tower.spec, tower.images, tower.weights)
