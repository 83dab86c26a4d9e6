from __future__ import annotations

import pytest

from lapilli.checkpoints import hf_names
from lapilli.checkpoints.original_names import to_ours, to_theirs
from lapilli.model.llava import Llava

OF_PUBLISHED_FILES = {
    "model.embed_tokens.weight": "language_model.embed_tokens.weight",
    "model.layers.31.mlp.gate_proj.weight": "language_model.layers.31.mlp.gate_proj.weight",
    "model.layers.0.self_attn.rotary_emb.inv_freq": None,
    "model.norm.weight": "language_model.norm.weight",
    "lm_head.weight": "language_model.lm_head.weight",
    "model.mm_projector.0.weight": "projector.linear_1.weight",
    "model.mm_projector.2.bias": "projector.linear_2.bias",
    "model.mm_projector.weight": "projector.linear.weight",
    "model.image_newline": "image_newline",
    "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": None,
    "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias": "vision_tower.pre_norm.bias",
    "model.vision_tower.vision_tower.vision_model.encoder.layers.7.mlp.fc1.weight": (
        "vision_tower.layers.7.fc1.weight"
    ),
}


@pytest.mark.parametrize("name", OF_PUBLISHED_FILES)
def test_names_of_published_files_are_known(name: str) -> None:
    assert to_ours(name) == OF_PUBLISHED_FILES[name]


def test_every_weight_has_one_name_there_and_back(model: Llava) -> None:
    ours = model.state_dict().keys()
    theirs = {name: to_theirs(name) for name in ours}
    assert {name: to_theirs(name) for name in map(to_ours, theirs.values()) if name} == theirs
    others = {hf_names.to_theirs(name) for name in ours}
    assert not others & set(theirs.values())
