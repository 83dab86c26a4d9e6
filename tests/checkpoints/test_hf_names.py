from __future__ import annotations

from lapilli.checkpoints.hf_names import to_ours, to_theirs
from lapilli.model.llava import Llava


def test_every_weight_has_one_name_there_and_back(model: Llava) -> None:
    ours = model.state_dict().keys()
    theirs = {to_theirs(weight) for weight in ours}
    assert len(theirs) == len(ours)
    assert {to_ours(weight) for weight in theirs} == set(ours)
    assert not theirs & ours - {"language_model.lm_head.weight"}
