"""How fast a checkpoint is loaded and how much memory that takes, beside `from_pretrained`.

    python benchmarks/load.py                     # a random LLaVA of 1 B parameters, 2 GB on disk
    python benchmarks/load.py --parameters 50     # a small one, in millions

What the numbers mean: a LLaVA-1.5 with random weights is written in bf16, as shards of a fifth of
its size. Each load runs in a process of its own, which has imported what it needs, and ends when
every weight has been looked at, so that nobody gains by leaving weights on the disk. "seconds" is
from the call to that end; files are in the system's cache for both sides. "CPU" is the work of all
threads in that time, which a busy machine changes least. "peak" is the largest
memory of the process during the load less what it had before; weights that are mapped from their
file count. Ours reads the tokenizer and the picture settings too. The last line is JSON; ratios are
ours to theirs, and below 1 is better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import torch
from timing import Spread, circumstances

from lapilli.checkpoints import hf
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

# In a fresh process: {kind} is the type that weights are wanted in.
_FRAME = """
import time
from pathlib import Path
import torch
{imports}
def peak():  # of this program alone; what getrusage tells may be its parent's
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) * 1024
torch.ones(9).bfloat16().float().max()
before, start, start_cpu = peak(), time.perf_counter(), time.process_time()
model = {load}
assert all(bool(parameter.max() > 0) for parameter in model.parameters())
print(time.perf_counter() - start, time.process_time() - start_cpu, peak() - before)
"""
CONTESTANTS = {
    "lapilli": _FRAME.format(
        imports="from lapilli import load\nfrom lapilli.checkpoints import hf as _",
        load="load({folder!r}, device='cpu', dtype=torch.{kind})[0]",
    ),
    "transformers": _FRAME.format(
        imports="from transformers import LlavaForConditionalGeneration as Theirs",
        load="Theirs.from_pretrained({folder!r}, dtype=torch.{kind})",
    ),
}
KINDS = ("bfloat16", "float32")
MEASURES = ("seconds", "cpu_seconds", "peak_bytes")


def main() -> None:
    """Write the checkpoint, load it in turns, print a table and a line of JSON."""
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        count = write_checkpoint(Path(folder), options.parameters * 1_000_000)
        rows = measure(folder, options.repeats)
    report(rows, count, options.repeats)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=1000, help="in millions, about")
    parser.add_argument("--repeats", type=int, default=5, help="timed loads of each contestant")
    parser.add_argument("--folder", help="where the checkpoint is written for the time")
    options = parser.parse_args()
    if options.parameters < 20 or options.repeats < 1:
        parser.error("--parameters needs 20 or more, --repeats 1 or more")
    return options


def write_checkpoint(folder: Path, parameters: int) -> int:
    """Write a random LLaVA of about that many parameters in five shards; return the true count."""
    tokenizer = train_tokenizer(["What is in this picture?"], 300)
    processor = Processor(
        tokenizer,
        ImageSettings(56, "crop", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=16, max_tokens=64),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(encoding="utf-8"),
    )
    # Some twenty layers, whose width makes up the number.
    width = max(256, int((parameters / 200) ** 0.5) // 128 * 128)
    num_layers = max(1, round((parameters - 2 * width * 8192) / (12.25 * width**2)))
    spec = LlavaSpec(
        VisionSpec(56, 14, 256, 4, 4, 1024),
        DecoderSpec(
            8192, width, num_layers, width // 128, width // 128, 128, width * 11 // 4,
            max_positions=64,
        ),
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Llava(spec).bfloat16()
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    hf.save(folder, model, processor)
    _split(folder / "model.safetensors", num_shards=5)
    return sum(parameter.numel() for parameter in model.parameters())


def _split(path: Path, num_shards: int) -> None:
    """Write a file of weights again as shards, whose index lists them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    total = sum(value.nbytes for value in weights.values())
    shards: list[list[str]] = [[] for _ in range(num_shards)]
    seen = 0
    for name, value in weights.items():
        shards[min(num_shards - 1, seen * num_shards // total)].append(name)
        seen += value.nbytes
    files = {}
    for n, names in enumerate(shards, 1):
        file = f"model-{n:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: weights[name] for name in names}, path.with_name(file), {"format": "pt"})
        files |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()


def measure(folder: str, repeats: int) -> dict[str, dict[str, dict[str, Spread]]]:
    """Return what `MEASURES` names by type and contestant, who take turns after one warm-up."""
    runs: dict[tuple[str, str], list[list[float]]] = {
        (kind, name): [] for kind in KINDS for name in CONTESTANTS
    }
    for turn in range(repeats + 1):
        for (kind, name), results in runs.items():
            result = _run(CONTESTANTS[name].format(folder=folder, kind=kind))
            if turn:
                results.append(result)
    return {
        kind: {
            name: {
                measure: Spread.of(list(values))
                for measure, values in zip(
                    MEASURES, zip(*runs[kind, name], strict=True), strict=True
                )
            }
            for name in CONTESTANTS
        }
        for kind in KINDS
    }


def _run(code: str) -> list[float]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()[-len(MEASURES) :]]


def report(rows: dict[str, dict[str, dict[str, Spread]]], count: int, repeats: int) -> None:
    """Print the table, the ratios and the line of JSON."""
    print(f"{count / 1e6:.0f} M parameters, {2 * count / 1e9:.2f} GB on disk; median (range)")
    ratios: dict[str, dict[str, float]] = {}
    for kind, contestants in rows.items():
        for name, row in contestants.items():
            seconds, cpu, peak = (row[measure] for measure in MEASURES)
            print(
                f"{name:13s} as {kind:8s} {seconds.median:6.2f} s "
                f"({seconds.low:.2f}-{seconds.high:.2f}) {cpu.median:6.2f} s CPU "
                f"({cpu.low:.2f}-{cpu.high:.2f}) {peak.median / 1e9:6.2f} GB"
            )
        ours, theirs = contestants["lapilli"], contestants["transformers"]
        ratios[kind] = {
            measure: round(ours[measure].median / theirs[measure].median, 3) for measure in ours
        }
        print(f"ours to theirs as {kind}: {ratios[kind]}")
    result = {
        "benchmark": "load",
        "parameters": count,
        "repeats": repeats,
        "ratio": ratios,
        "results": {
            kind: {
                name: {measure: asdict(spread) for measure, spread in row.items()}
                for name, row in contestants.items()
            }
            for kind, contestants in rows.items()
        },
        **circumstances(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
