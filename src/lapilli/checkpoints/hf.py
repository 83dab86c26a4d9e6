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
from lapilli.checkpoints.hf_spec import spec_from_hf, spec_to_hf
from lapilli.checkpoints.shards import WEIGHTS, weight_files
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.weights import fill_from_files, stored, write_weights
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor


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
    path = folder / "config.json"
    spec = spec_from_hf(read_json(path), str(path))
    processor = read_processor(folder, spec)  # its faults are told before gigabytes are read
    model = blank_model(spec)
    fill_from_files(
        model,
        weight_files(folder),
        folder,
        renamed=to_ours,
        shown=to_theirs,
        device=device,
        dtype=dtype,
    )
    return model.eval(), processor


def save(folder: Path, model: Llava, processor: Processor) -> None:
    """Write a model folder that `transformers` loads as the class of this kind of model.

    Weights keep their type.

    Raises:
        CheckpointError: Hugging Face's models have no form for this model or processor, or it has
            weights of 8 or 4 bits.
    """
    weights = stored(model)
    ids = special_ids(processor)
    config = spec_to_hf(model.spec) | ids | {"dtype": str(model.dtype).removeprefix("torch.")}
    if config["model_type"] == "llava_onevision":
        config |= video_ids(processor)
    texts = processor_files(processor, model.spec)
    texts["config.json"] = _as_json(config)
    texts["generation_config.json"] = _as_json(ids)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_weights(folder / WEIGHTS, to_hf(weights), {"format": "pt"})


def to_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that they have on disk."""
    return {to_theirs(name): value for name, value in weights.items()}


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
