"""Models that others published on the hub: their short names, and what is known without a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One model on the hub.

    Attributes:
        name: short; what `--model` takes.
        hub_id: the repository that holds it.
        parameters: how many numbers the weights hold, to the nearest million.
        license: of the weights; "Llama 2" and "Llama 3" are Meta's community licences, which
            bind their users.
        features_per_tile: that the decoder sees of a picture, or of one tile of it.
        max_tiles: into which a picture is cut, the whole one included.
        context: tokens of a conversation, features included.
    """

    name: str
    hub_id: str
    parameters: int
    license: str
    vision_tower: str
    projector: str
    decoder: str
    features_per_tile: int
    max_tiles: int
    context: int


_CLIP = "CLIP ViT-L/14, 336 px"
_SIGLIP = "SigLIP so400m/14, 384 px"
_MLP = "mlp2x_gelu"
_LLAMA_2 = "Llama 2"
_LLAMA_3 = "Llama 3"
_APACHE = "Apache-2.0"

# Parameters follow from the architecture, and licences from the model cards; BakLLaVA's card names
# none, and says that some of its data may not be used commercially.
_ALL = (
    Published(
        "llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", 7_063_000_000, _LLAMA_2,
        _CLIP, _MLP, "Vicuna 7B v1.5", 576, 1, 4096,
    ),
    Published(
        "llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", 13_351_000_000, _LLAMA_2,
        _CLIP, _MLP, "Vicuna 13B v1.5", 576, 1, 4096,
    ),
    Published(
        "llava-1.6-vicuna-7b", "llava-hf/llava-v1.6-vicuna-7b-hf", 7_063_000_000, _LLAMA_2,
        _CLIP, _MLP, "Vicuna 7B v1.5", 576, 5, 4096,
    ),
    Published(
        "llava-1.6-vicuna-13b", "llava-hf/llava-v1.6-vicuna-13b-hf", 13_351_000_000, _LLAMA_2,
        _CLIP, _MLP, "Vicuna 13B v1.5", 576, 5, 4096,
    ),
    Published(
        "llava-1.6-mistral-7b", "llava-hf/llava-v1.6-mistral-7b-hf", 7_567_000_000, _APACHE,
        _CLIP, _MLP, "Mistral 7B Instruct v0.2", 576, 5, 32768,
    ),
    Published(
        "llava-1.6-34b", "llava-hf/llava-v1.6-34b-hf", 34_752_000_000, _APACHE,
        _CLIP, _MLP, "Nous Hermes 2 Yi 34B", 576, 5, 4096,
    ),
    Published(
        "llava-next-llama3-8b", "llava-hf/llama3-llava-next-8b-hf", 8_355_000_000, _LLAMA_3,
        _CLIP, _MLP, "Llama 3 8B Instruct", 576, 5, 8192,
    ),
    Published(
        "llava-onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 894_000_000, _APACHE,
        _SIGLIP, _MLP, "Qwen2 0.5B Instruct", 729, 37, 32768,
    ),
    Published(
        "llava-onevision-7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 8_031_000_000, _APACHE,
        _SIGLIP, _MLP, "Qwen2 7B Instruct", 729, 37, 32768,
    ),
    Published(
        "bakllava-7b", "llava-hf/bakLlava-v1-hf", 7_567_000_000, "unknown",
        _CLIP, _MLP, "Mistral 7B v0.1", 576, 1, 32768,
    ),
)  # fmt: skip

PUBLISHED = {model.name: model for model in _ALL}
"""By their short names."""
