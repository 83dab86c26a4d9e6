"""Names of weights in Hugging Face LLaVA checkpoints, to ours and back.

The names on disk are the oldest and the rule here; models in memory and later versions of
`transformers` call the same weights otherwise, and those names are read too.
"""

from __future__ import annotations

# theirs on disk: ours; "layrnorm" is their spelling
_PARTS = {
    "vision_tower.vision_model.embeddings.patch_embedding.": "vision_tower.patch_embedding.",
    "vision_tower.vision_model.embeddings.class_embedding": "vision_tower.class_embedding",
    "vision_tower.vision_model.embeddings.position_embedding.": "vision_tower.position_embedding.",
    "vision_tower.vision_model.pre_layrnorm.": "vision_tower.pre_norm.",
    "vision_tower.vision_model.encoder.layers.": "vision_tower.layers.",
    "vision_tower.vision_model.post_layernorm.": "vision_tower.post_norm.",
    "multi_modal_projector.": "projector.",
    "image_newline": "image_newline",
}
_DECODER_PARTS = {
    "language_model.model.embed_tokens.": "language_model.embed_tokens.",
    "language_model.model.layers.": "language_model.layers.",
    "language_model.model.norm.": "language_model.norm.",
    "language_model.lm_head.": "language_model.lm_head.",
}
_FOREIGN_PARTS = {
    "language_model.model.": "language_model.body.",
    "language_model.lm_head.": "language_model.lm_head.output.",
}
_IN_VISION_LAYER = {
    "layer_norm1.": "norm1.",
    "self_attn.": "attention.",
    "layer_norm2.": "norm2.",
    "mlp.fc1.": "fc1.",
    "mlp.fc2.": "fc2.",
}
_IN_DECODER_LAYER = {
    "input_layernorm.": "input_norm.",
    "self_attn.": "attention.",
    "post_attention_layernorm.": "post_attention_norm.",
    "mlp.": "mlp.",
}
_LAYERS = {
    "vision_tower.layers.": _IN_VISION_LAYER,
    "language_model.layers.": _IN_DECODER_LAYER,  # a foreign decoder has its own, in its body
}

# other names: those on disk; the first that fits counts
_OTHER_STARTS = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "language_model.transformer.": "language_model.model.",
    "language_model.gpt_neox.": "language_model.model.",
    "language_model.embed_out.": "language_model.lm_head.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "vision_tower.vision_model.": "vision_tower.vision_model.",
    "vision_tower.": "vision_tower.vision_model.",
}

_IGNORED_STARTS = ("vision_tower.vision_model.head.",)
"""SigLIP's pooling, which LLaVA does not look at."""

_IGNORED_ENDS = (".position_ids", ".rotary_emb.inv_freq")
"""Constants that older versions saved."""


def to_ours(name: str, *, is_foreign: bool = False) -> str | None:
    """Return our name of a weight; None for one that is not needed, `name` for an unknown one.

    Args:
        is_foreign: `transformers` runs the decoder, whose weights keep their names.
    """
    on_disk = replace_start(name, _OTHER_STARTS)
    if on_disk.startswith(_IGNORED_STARTS) or on_disk.endswith(_IGNORED_ENDS):
        return None
    return _rename_in_layer(replace_start(on_disk, _parts(is_foreign)), _LAYERS)


def to_theirs(name: str, *, is_foreign: bool = False) -> str:
    """Return the name on disk of a weight of ours; `is_foreign` as in `to_ours`."""
    of_layers = {start: inverse(table) for start, table in _LAYERS.items()}
    return replace_start(_rename_in_layer(name, of_layers), inverse(_parts(is_foreign)))


def _parts(is_foreign: bool) -> dict[str, str]:
    return _PARTS | (_FOREIGN_PARTS if is_foreign else _DECODER_PARTS)


def _rename_in_layer(name: str, layers: dict[str, dict[str, str]]) -> str:
    for start, table in layers.items():
        if name.startswith(start):
            number, _, inside = name.removeprefix(start).partition(".")
            return f"{start}{number}.{replace_start(inside, table)}"
    return name


def replace_start(name: str, table: dict[str, str]) -> str:
    """Return a name with another start, by the first row of the table that fits."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def inverse(table: dict[str, str]) -> dict[str, str]:
    """Return a table that leads back."""
    return {ours: theirs for theirs, ours in table.items()}
