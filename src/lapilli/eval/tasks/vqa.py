"""VQAv2, TextVQA and VizWiz: short answers, each compared with those of ten people.

Sources: Goyal et al. 2017, "Making the V in VQA Matter"; Singh et al. 2019, "Towards VQA Models
That Can Read"; Gurari et al. 2018, "VizWiz Grand Challenge".
"""

from __future__ import annotations

from pathlib import Path

from lapilli.eval.answers import FILE_ID
from lapilli.eval.files import find, picture, read_jsonl, read_records
from lapilli.eval.task import SHORT, Task
from lapilli.eval.vqa_accuracy import accuracy
from lapilli.messages import Question

VQA_SOURCE = "https://visualqa.org/download.html"
TEXTVQA_SOURCE = "https://textvqa.org/dataset"
VIZWIZ_SOURCE = "https://vizwiz.org/tasks-and-datasets/vqa"
TEXTVQA_WITH_TOKENS = "llava_textvqa_val_v051_ocr.jsonl"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def read_vqav2(folder: Path) -> list[Question]:
    """The validation questions, by the kind of their answer."""
    path = find(folder, "v2_mscoco_val2014_annotations.json", source=VQA_SOURCE)
    known = {row["question_id"]: row for row in read_records(path, "annotations")}
    path = find(folder, "v2_OpenEnded_mscoco_val2014_questions.json", source=VQA_SOURCE)
    questions = []
    for row in read_records(path, "questions"):
        label = known[row["question_id"]]
        name = f"COCO_val2014_{row['image_id']:012d}.jpg"
        questions.append(
            Question(
                str(row["question_id"]),
                picture(folder / "val2014", name),
                row["question"],
                label["multiple_choice_answer"],
                label["answer_type"],
                {"answers": [one["answer"] for one in label["answers"]]},
            )
        )
    return questions


def read_textvqa(folder: Path) -> list[Question]:
    """The validation questions; with "Reference OCR token: ..." where LLaVA's file is there."""
    path = folder / TEXTVQA_WITH_TOKENS
    rows = read_jsonl(path) if path.is_file() else iter(())
    longer = {(row["question_id"], _first_line(row["text"])): row["text"] for row in rows}
    path = find(folder, "TextVQA_0.5.1_val.json", source=TEXTVQA_SOURCE)
    questions = []
    for row in read_records(path, "data"):
        number, text = row["image_id"], row["question"]
        questions.append(
            Question(
                str(row["question_id"]),
                picture(folder / "train_images", f"{number}.jpg"),
                longer.get((number, _first_line(text)), text),
                row["answers"][0],
                extra={"answers": row["answers"], FILE_ID: number},
            )
        )
    return questions


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip().casefold()


def read_vizwiz(folder: Path) -> list[Question]:
    """The validation questions, by the kind of their answer.

    LLaVA numbers questions by the end of their picture's name.
    """
    path = find(folder, "val.json", "Annotations/val.json", source=VIZWIZ_SOURCE)
    questions = []
    for row in read_records(path):
        answers = [one["answer"] for one in row["answers"]]
        number = str(int(Path(row["image"]).stem.rpartition("_")[2]))
        image = picture(folder / "val", row["image"])
        text, kind = row["question"] + UNANSWERABLE, row["answer_type"]
        extra = {"answers": answers}
        questions.append(Question(number, image, text, answers[0], kind, extra))
    return questions


def score(question: Question, answer: str) -> float:
    """How many people agree with the answer, leaving out one after the other."""
    return accuracy(question.extra["answers"], answer)


VQAV2 = Task("vqav2", read_vqav2, score, ending=SHORT)
TEXTVQA = Task("textvqa", read_textvqa, score, ending=SHORT)
VIZWIZ = Task("vizwiz", read_vizwiz, score, ending=SHORT)
