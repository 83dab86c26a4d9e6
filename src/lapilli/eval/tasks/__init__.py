"""The benchmarks by their names."""

from __future__ import annotations

from lapilli.eval.task import Task
from lapilli.eval.tasks import drawn, gqa, mme, pope, scienceqa, vqa

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        drawn.DRAWN,
        pope.POPE,
        mme.MME,
        vqa.VQAV2,
        vqa.TEXTVQA,
        vqa.VIZWIZ,
        gqa.GQA,
        scienceqa.SCIENCEQA,
        scienceqa.SCIENCEQA_IMG,
    )
}
