"""Model folders in the layout of Hugging Face's LLaVA-1.5, -NeXT and -OneVision, read and written.

config.json                    the architecture
model*.safetensors             weights, in one file or in shards that an index lists
tokenizer.json                 words to ids
tokenizer_config.json          which ids begin, end and fill a text
chat_template.jinja            how a conversation is written
preprocessor_config.json       how pictures are prepared
processor_config.json          how many places a picture takes
generation_config.json         where an answer ends
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.hf_names import to_ours, to_theirs
from lapilli.checkpoints.hf_processor import (
    processor_files,
    read_processor,
    special_ids,
    video_ids,
)
from lapilli.checkpoints.hf_spec import decoder_type, spec_from_hf, spec_to_hf
from lapilli.checkpoints.shards import WEIGHTS, weight_files
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.vocabulary import with_room_for_image
from lapilli.checkpoints.weights import Source, fill_from_files, stored, write_weights
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import ForeignSpec, LlavaSpec
from lapilli.processor.processor import Processor
from lapilli.runtime import replacing_files


def load(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Llava, Processor]:
    """Read a model folder.

    Args:
        dtype: type of the weights in memory; as stored by default.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture is not supported, or
            weights and architecture disagree.
    """
    spec = read_spec(folder)
    kind = decoder_type(read_json(folder / "config.json"))
    processor = read_processor(folder, spec, kind)  # its faults are told before gigabytes are read
    model = blank_model(spec)
    is_foreign = isinstance(spec.decoder, ForeignSpec)
    source = Source(
        weight_files(folder),
        folder,
        partial(to_ours, is_foreign=is_foreign),
        partial(to_theirs, is_foreign=is_foreign),
    )
    fill_from_files(model, [source], device=device, dtype=dtype)
    return model.eval(), processor


def read_spec(folder: Path) -> LlavaSpec:
    """Read the architecture alone.

    Raises:
        CheckpointError: `config.json` is missing or damaged, or asks for what is not supported.
    """
    path = folder / "config.json"
    return spec_from_hf(read_json(path), str(path))


def save(folder: Path, model: Llava, processor: Processor) -> None:
    """Write a model folder that `transformers` loads as the class of this kind of model.

    Weights keep their type. Embeddings grow where the picture's token lies beyond them. Files that
    are there are replaced when all new ones are written; the model may be the one that was read
    from them.

    Raises:
        CheckpointError: Hugging Face's models have no form for this model or processor, it has
            weights of 8 or 4 bits, or they cannot be written.
    """
    weights = stored(model)
    ids = special_ids(processor)
    spec, weights = with_room_for_image(model.spec, stored(model))
    config = spec_to_hf(spec) | ids | {"dtype": str(model.dtype).removeprefix("torch.")}
    if config["model_type"] == "llava_onevision":
        config |= video_ids(processor)
    texts = processor_files(processor, spec)
    texts["config.json"] = _as_json(config)
    texts["generation_config.json"] = _as_json(ids)
    with replacing_files(folder) as place:
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
        write_weights(place / WEIGHTS, _to_hf(spec, weights), {"format": "pt"})


def _to_hf(spec: LlavaSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that they have on disk."""
    is_foreign = isinstance(spec.decoder, ForeignSpec)
    if is_foreign and "language_model.lm_head.output.bias" in weights:
        raise CheckpointError(
            "a head with a bias: Hugging Face has no form for it; use Lapilli's own"
        )
    return {to_theirs(name, is_foreign=is_foreign): value for name, value in weights.items()}


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
