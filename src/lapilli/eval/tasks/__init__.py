"""The benchmarks by their names."""

from __future__ import annotations

from lapilli.eval.task import Task
from lapilli.eval.tasks import (
    ai2d,
    captions,
    chair,
    chartqa,
    docvqa,
    drawn,
    gqa,
    graded,
    mmbench,
    mme,
    mmmu,
    nlvr,
    pope,
    refcoco,
    scienceqa,
    seed,
    vqa,
)

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
        *mmbench.MMBENCH,
        seed.SEED,
        mmmu.MMMU,
        ai2d.AI2D,
        chartqa.CHARTQA,
        docvqa.DOCVQA,
        *refcoco.REFCOCO,
        captions.CAPTIONS,
        chair.CHAIR,
        nlvr.NLVR,
        nlvr.NLVR2,
        graded.MM_VET,
        graded.LLAVA_WILD,
        graded.LLAVA_COCO,
    )
}
