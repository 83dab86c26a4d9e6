"""Names of weights in checkpoints of the code that LLaVA was published with, to ours and back.

Within a layer they are those of Hugging Face's files, as both took them over from the same towers
and language models. A language model alone has these names, too.
"""

from __future__ import annotations

from lapilli.checkpoints import hf_names
from lapilli.checkpoints.hf_names import inverse, replace_start

# theirs: those of Hugging Face's LLaVA on disk; the first that fits counts
_STARTS = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.mm_projector.": "multi_modal_projector.linear.",
    "model.image_newline": "image_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def to_ours(name: str) -> str | None:
    """Return our name of a weight; None for one that is not needed, no name for an unknown one."""
    return hf_names.to_ours(replace_start(name, _STARTS))


def to_theirs(name: str) -> str:
    """Return the name in their files of a weight of ours."""
    return replace_start(hf_names.to_theirs(name), inverse(_STARTS))
