"""Vision pretraining: every patch learns what object it lies on, which attributes, and its bounds.

The features that the language model will see (`VisionSpec.feature_layer`) are trained on patches;
the class token of the last layer is trained to name the whole picture. The heads are thrown away.
"""

# B pictures, P patches, D width

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.data.augment import Augmentation, augment
from lapilli.data.mixture import mix
from lapilli.data.records import Records
from lapilli.data.regions import UNKNOWN, Vocabulary, patch_targets
from lapilli.errors import DataError
from lapilli.messages import Sample
from lapilli.model.spec import VisionSpec
from lapilli.model.vit import VisionTransformer
from lapilli.processor.images import ImageSettings
from lapilli.processor.opening import open_image
from lapilli.train.recipe import Recipe, SourceRecipe

CACHED_BYTES = 2**30
"""Decoded pictures of one source that a process keeps, at most."""
SLOT_WEIGHTS = {"name": 2.0, "color": 0.5, "size": 0.5, "fine": 0.4}
PICTURE_WEIGHT = 0.3


class RegionHeads(nn.Module):
    """Linear readings of the tower's features, one a slot and one for the box."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.slots = nn.ModuleDict(
            {
                f"{slot}_head": nn.Linear(width, len(words))
                for slot, words in vocabulary.words.items()
            }
        )
        self.box_head = nn.Linear(width, 4)
        self.picture_head = nn.Linear(width, len(vocabulary.words["name"]))

    def forward(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, P, D) to the logits of each slot (B, P, W) and boxes (B, P, 4)."""
        features = self.norm(features)
        logits = {slot.removesuffix("_head"): head(features) for slot, head in self.slots.items()}
        return logits, self.box_head(features)


class Pretrainer(nn.Module):
    """A tower with its heads."""

    def __init__(self, spec: VisionSpec, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vision_tower = VisionTransformer(spec)
        self.heads = RegionHeads(spec.width, vocabulary)

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(B, 3, S, S) to slot logits, boxes, and logits of the whole picture (B, W)."""
        tower = self.vision_tower
        x = tower.embed(pixels)
        for layer in tower.layers[: tower.spec.num_feature_layers]:
            x = layer(x)
        logits, boxes = self.heads(tower.patches(x))
        for layer in tower.layers[tower.spec.num_feature_layers :]:
            x = layer(x)
        return logits, boxes, self.heads.picture_head(tower.post_norm(x)[:, 0])


@dataclass
class RegionBatch:
    """Pixels (B, 3, S, S); classes of each slot (B, P); boxes (B, P, 4), NaN for none; weights of
    the patches (B, P); names of the whole picture as shares (B, W)."""

    pixels: Tensor
    classes: dict[str, Tensor]
    boxes: Tensor
    weights: Tensor
    names: Tensor


@dataclass
class Source:
    """Records with pictures, and how they are changed."""

    recipe: SourceRecipe
    records: Records
    cached: dict[int, tuple[np.ndarray, Sample]] = field(default_factory=dict)
    num_cached_bytes: int = 0

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return what a record says is in its picture.

        Raises:
            DataError: it names no picture, or no `objects` with bounds.
        """
        row = self.records.raw(index)
        if not row.get("image") or not isinstance(row.get("objects"), list):
            raise DataError(
                f"{self.records.path}, row {index}: a vision stage needs image and objects. "
                "Add them or remove the row."
            )
        for thing in row["objects"]:
            if not isinstance(thing, dict) or not _is_box(thing.get("box")):
                raise DataError(
                    f"{self.records.path}, row {index}: {thing!r} is no object with a box. "
                    'Write {"name": ..., "box": [x1, y1, x2, y2]} in 0-1 or remove it.'
                )
        return row["objects"]

    def get(self, index: int) -> tuple[Image.Image, Sample]:
        """Return a picture and its record; the first that are asked for stay in memory."""
        if index in self.cached:
            array, sample = self.cached[index]
            return Image.fromarray(array), sample
        sample = self.records[index]
        image = open_image(sample.images[0])
        array = np.asarray(image)
        if self.num_cached_bytes + array.nbytes <= CACHED_BYTES:
            self.cached[index] = array, sample
            self.num_cached_bytes += array.nbytes
        return image, sample


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(isinstance(v, int | float) and 0 <= v <= 1 for v in value)


class VisionLearner:
    """Stage "vision" of a recipe.

    Args:
        sources, validation: records by source, in the recipe's order.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: VisionSpec,
        settings: ImageSettings,
        sources: list[Source],
        validation: list[Source],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.recipe, self.spec, self.settings = recipe, spec, settings
        self.sources, self.validation = sources, validation
        self.rank, self.world_size = rank, world_size
        things = (t for s in sources for r in range(len(s.records)) for t in s.objects(r))
        for source, index in ((s, i) for s in validation for i in range(len(s.records))):
            source.objects(index)  # a fault is told now, not at the first evaluation
        self.vocabulary = Vocabulary.gather(things)
        self.module = Pretrainer(spec, self.vocabulary)
        total = recipe.stage.steps * recipe.stage.batch
        self.order = mix(
            [len(s.records) for s in sources], [s.recipe.weight for s in sources], total,
            recipe.run.seed,
        )  # fmt: skip

    def parts(self) -> dict[str, nn.Module]:
        """The tower alone is named; its heads learn at the same rate."""
        return {"vision_tower": self.module}

    def batch(self, step: int) -> RegionBatch:
        """Return this process's share of the pictures of a step."""
        size = self.recipe.stage.batch
        rows = self.order[step * size : (step + 1) * size][self.rank :: self.world_size]
        rng = np.random.default_rng([self.recipe.run.seed, step, self.rank])
        return self.collate([(self.sources[s], int(i)) for s, i in rows], rng)

    def collate(
        self, rows: list[tuple[Source, int]], rng: np.random.Generator | None
    ) -> RegionBatch:
        """Return a batch; without `rng` nothing is changed at random."""
        images, targets, boxes, weights, names = [], [], [], [], []
        for source, index in rows:
            image, sample = source.get(index)
            how = source.recipe
            changes = Augmentation(how.min_area, how.is_mirrored, how.light)
            if rng is None:
                rng_here, changes = np.random.default_rng(0), Augmentation()
            else:
                rng_here = rng
            image, objects = augment(image, sample.objects, changes, self.spec.image_size, rng_here)
            images.append(np.asarray(image))
            classes, bounds, shares = patch_targets(
                objects, self.vocabulary, self.spec.grid, is_complete=how.is_complete
            )
            targets.append(classes)
            boxes.append(bounds)
            weights.append(shares)
            names.append(self._shares(objects))
        mean = np.asarray(self.settings.mean, np.float32) * 255
        std = np.asarray(self.settings.std, np.float32) * 255
        pixels = (np.stack(images).astype(np.float32) - mean) / std  # (B, S, S, 3)
        return RegionBatch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            {
                slot: torch.from_numpy(np.stack([t[slot] for t in targets]))
                for slot in self.vocabulary.words
            },
            torch.from_numpy(np.stack(boxes)),
            torch.from_numpy(np.stack(weights)),
            torch.from_numpy(np.stack(names)),
        )

    def _shares(self, objects: tuple[dict[str, Any], ...]) -> np.ndarray:
        words = self.vocabulary.words["name"]
        shares = np.zeros(len(words), np.float32)
        for thing in objects:
            if thing.get("name") in words:
                shares[words.index(thing["name"])] = 1
        return shares / max(shares.sum(), 1)

    def loss(self, batch: RegionBatch) -> tuple[Tensor, float, dict[str, float]]:
        """Return the sum of the patches' and the picture's losses, the number of pictures, and
        each of the losses."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.run.dtype == "bf16"):
            losses = self._losses(batch)
        total = sum(losses.values(), torch.zeros(()))
        return total, float(len(batch.pixels)), {k: v.item() for k, v in losses.items()}

    def _losses(self, batch: RegionBatch) -> dict[str, Tensor]:
        logits, boxes, picture = self.module(batch.pixels)
        losses = {}
        for slot, values in logits.items():
            losses[slot] = SLOT_WEIGHTS[slot] * slot_loss(
                values.float(), batch.classes[slot], batch.weights
            )
        losses["box"] = box_loss(boxes.float(), batch.boxes, batch.weights)
        losses["picture"] = PICTURE_WEIGHT * F.cross_entropy(picture.float(), batch.names)
        return losses

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return accuracy by slot and mean IoU over patches, and of names of whole pictures."""
        figures: dict[str, float] = {}
        for source in self.validation:
            hits: dict[str, list[float]] = {}
            rows = [(source, i) for i in range(len(source.records))]
            for start in range(0, len(rows), 128):
                batch = self.collate(rows[start : start + 128], None)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.run.dtype == "bf16"):
                    logits, boxes, picture = self.module(batch.pixels)
                for slot, values in logits.items():
                    target = batch.classes[slot]
                    known = (target != UNKNOWN) & (target != 0 if slot == "name" else True)
                    hits.setdefault(slot, []).extend(
                        (values.argmax(-1) == target)[known].float().tolist()
                    )
                is_object = ~batch.boxes[..., 0].isnan()
                overlap = iou(boxes.float()[is_object], batch.boxes[is_object])
                hits.setdefault("iou", []).extend(overlap.tolist())
                chosen = picture.argmax(-1, keepdim=True)
                hits.setdefault("picture", []).extend(
                    (batch.names.gather(1, chosen) > 0).float().flatten().tolist()
                )
            name = source.recipe.path.stem
            figures |= {f"{name}/{k}": float(np.mean(v)) for k, v in hits.items() if v}
        return figures


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap of boxes x1, y1, x2, y2 (..., 4); 0 where one is turned inside out."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    return both / (areas[0] + areas[1] - both).clamp(min=1e-6)


def slot_loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean cross entropy of the patches whose class is known.

    Args:
        logits: (B, P, W).
        classes: (B, P), UNKNOWN for no loss.
        weights: (B, P).
    """
    weights = weights * (classes != UNKNOWN)
    each = F.cross_entropy(
        logits.flatten(0, 1),
        classes.flatten(),
        ignore_index=UNKNOWN,
        label_smoothing=0.05,
        reduction="none",
    )
    return (each * weights.flatten()).sum() / weights.sum().clamp(min=1)


def box_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return distance plus missing overlap, a weighted mean over patches that lie on an object.

    Args:
        predicted, target: (B, P, 4); NaN in the target where there is no object.
        weights: (B, P).
    """
    is_object = ~target[..., 0].isnan()
    target = target.nan_to_num()
    distance = (predicted - target).abs().sum(-1)
    each = 5 * distance + (1 - iou(predicted, target))
    weights = weights * is_object
    return (each * weights).sum() / weights.sum().clamp(min=1)
