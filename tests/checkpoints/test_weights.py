"""Weights that stream from files into a model: every fault before the first weight."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.weights import Source, fill_from_files, stored
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec

DECODER = DecoderSpec(64, 32, 2, 4, 2, 8, 48, max_positions=64)
SPEC = LlavaSpec(VisionSpec(16, 8, 32, 2, 2, 48), DECODER, image_token_id=5)
TIED = replace(SPEC, decoder=replace(DECODER, is_tied=True))
NORM = "language_model.norm.weight"
TOWER = "vision_tower."
HEAD = "language_model.lm_head.weight"
EMBEDDINGS = "language_model.embed_tokens.weight"


def written(folder: Path, weights: dict[str, Tensor], num_shards: int = 3) -> list[Path]:
    """The weights in shards."""
    files = []
    for n in range(num_shards):
        path = folder / f"model-{n}.safetensors"
        names = sorted(weights)[n::num_shards]
        save_file({name: weights[name].contiguous() for name in names}, path)
        files.append(path)
    return files


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in stored(Llava(SPEC)).items()}


@pytest.fixture
def files(tmp_path: Path, weights: dict[str, Tensor]) -> list[Path]:
    return written(tmp_path, weights)


def message(files: list[Path], where: Path, spec: LlavaSpec = SPEC) -> str:
    """What is refused, in one line and before the model has a single weight."""
    model = blank_model(spec)
    with pytest.raises(CheckpointError) as caught:
        fill_from_files(model, [Source(files, where)])
    assert "\n" not in str(caught.value)
    assert all(value.is_meta for value in model.state_dict().values())
    return str(caught.value)


def shard_of(name: str, files: list[Path]) -> Path:
    return next(path for path in files if name in load_file(path))


def changed(path: Path, **weights: Tensor | None) -> None:
    """Write a file again with other weights; None takes one out."""
    content: dict[str, Tensor | None] = {**load_file(path), **weights}
    save_file({name: value for name, value in content.items() if value is not None}, path)


# What is filled


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_model_takes_the_weights_of_all_shards_bit_by_bit(
    weights: dict[str, Tensor], tmp_path: Path, num_shards: int
) -> None:
    model = blank_model(SPEC)
    fill_from_files(model, [Source(written(tmp_path, weights, num_shards), tmp_path)])
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_weights_come_in_the_type_that_was_asked_for(
    files: list[Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = blank_model(SPEC)
    fill_from_files(model, [Source(files, tmp_path)], dtype=torch.bfloat16)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name].bfloat16()), name


@pytest.mark.parametrize("head", ["not stored", "stored", "stored in another shape"])
def test_a_tied_head_is_the_embeddings_whatever_was_stored(
    weights: dict[str, Tensor], tmp_path: Path, head: str
) -> None:
    if head == "not stored":
        del weights[HEAD]
    elif head == "stored in another shape":
        weights[HEAD] = torch.zeros(3, 5)
    model = blank_model(TIED)
    fill_from_files(model, [Source(written(tmp_path, weights), tmp_path)])
    decoder = model.language_model
    assert decoder.lm_head.weight is decoder.embed_tokens.weight
    assert torch.equal(decoder.lm_head.weight, weights[EMBEDDINGS])


def test_names_are_renamed_and_those_that_nobody_needs_left_out(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    theirs = {f"model.{name}": value for name, value in weights.items()}
    theirs["position_ids"] = torch.arange(4)
    model = blank_model(SPEC)
    files = written(tmp_path, theirs)

    def renamed(name: str) -> str | None:
        return name.removeprefix("model.") if name.startswith("model.") else None

    fill_from_files(model, [Source(files, tmp_path, renamed)])
    assert torch.equal(model.state_dict()[NORM], weights[NORM])


def test_frozen_parts_stay_frozen(files: list[Path], tmp_path: Path) -> None:
    model = blank_model(SPEC)
    model.vision_tower.requires_grad_(False)
    fill_from_files(model, [Source(files, tmp_path)])
    assert {p.requires_grad for p in model.vision_tower.parameters()} == {False}
    assert {p.requires_grad for p in model.projector.parameters()} == {True}


def test_weights_that_hold_nan_are_warned_of_by_name(
    files: list[Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = shard_of(NORM, files)
    changed(path, **{NORM: weights[NORM].index_fill(0, torch.tensor([3]), float("nan"))})
    with pytest.warns(UserWarning, match=f"{path}: {NORM} holds NaN") as caught:
        fill_from_files(blank_model(SPEC), [Source(files, tmp_path)])
    assert len(caught) == 1


def test_infinite_weights_are_no_nan(
    files: list[Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    changed(shard_of(NORM, files), **{NORM: torch.full_like(weights[NORM], float("inf"))})
    fill_from_files(blank_model(SPEC), [Source(files, tmp_path)])  # a warning would be an error


def split(weights: dict[str, Tensor], folder: Path) -> tuple[Source, Source]:
    """The whole without the tower, and the tower under names of its own."""
    places = [folder / "whole", folder / "tower"]
    for place in places:
        place.mkdir()
    tower = {name.removeprefix(TOWER): v for name, v in weights.items() if name.startswith(TOWER)}
    rest = {name: value for name, value in weights.items() if not name.startswith(TOWER)}
    return (
        Source(written(places[0], rest), places[0]),
        Source(
            written(places[1], tower),
            places[1],
            lambda name: TOWER + name,
            lambda name: name.removeprefix(TOWER),
            TOWER,
        ),
    )


def test_a_model_is_filled_from_several_folders(weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = blank_model(SPEC)
    fill_from_files(model, split(weights, tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


# What is refused


def test_every_fault_of_every_shard_is_told_at_once(
    files: list[Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    changed(shard_of(NORM, files), **{NORM: torch.zeros(7)})
    changed(shard_of(HEAD, files), **{HEAD: weights[HEAD].to(torch.int8)})
    changed(files[1], **{"extra": torch.zeros(2)})
    changed(shard_of("projector.linear_1.bias", files), **{"projector.linear_1.bias": None})
    text = message(files, tmp_path)
    assert text.startswith(f"{tmp_path}: ")
    assert f"{NORM} is (7,), not (32,)" in text
    assert f"{HEAD} holds int8, not floating-point numbers" in text
    assert "extra is unknown" in text
    assert "projector.linear_1.bias is missing" in text


def test_a_missing_shard_is_named_with_the_faults_of_the_others(
    files: list[Path], tmp_path: Path
) -> None:
    kept = next(path for path in files if path != shard_of(NORM, files))
    changed(kept, **{"extra": torch.zeros(2)})
    lost = shard_of(NORM, files)
    lost.unlink()
    text = message(files, tmp_path)
    assert f"{lost}: missing" in text
    assert "extra is unknown" in text
    assert "is missing;" not in text.replace(f"{lost}: missing;", "")  # each of its weights


def test_a_weight_that_is_in_two_shards_is_refused(
    files: list[Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    first = shard_of(NORM, files)
    second = next(path for path in files if path != first)
    changed(second, **{NORM: weights[NORM]})
    text = message(files, tmp_path)
    assert f"{NORM} is in " in text
    assert first.name in text
    assert second.name in text


def test_faults_of_several_folders_are_told_with_the_folder_and_its_names(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    del weights[NORM], weights[f"{TOWER}post_norm.bias"]
    weights[f"{TOWER}pre_norm.bias"] = torch.zeros(3)
    model = blank_model(SPEC)
    with pytest.raises(CheckpointError) as caught:
        fill_from_files(model, split(weights, tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'whole'}: {NORM} is missing; {tmp_path / 'tower'}: "
        "post_norm.bias is missing; pre_norm.bias is (3,), not (32,)"
    )
    assert all(value.is_meta for value in model.state_dict().values())


def test_a_weight_of_two_folders_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    whole, tower = split(weights, tmp_path)
    changed(whole.files[0], **{f"{TOWER}pre_norm.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match=r"pre_norm\.bias is in .*whole.* and in .*tower"):
        fill_from_files(blank_model(SPEC), [whole, tower])


def test_two_names_for_one_weight_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (path,) = written(tmp_path, {**weights, f"x.{NORM}": weights[NORM].clone()}, 1)
    with pytest.raises(CheckpointError, match="under two names"):
        fill_from_files(
            blank_model(SPEC), [Source([path], tmp_path, lambda name: name.removeprefix("x."))]
        )


@pytest.mark.parametrize("num_bytes", [0, 5, 100, -1])
def test_truncated_files_are_all_named(files: list[Path], tmp_path: Path, num_bytes: int) -> None:
    for path in files[:2]:
        path.write_bytes(path.read_bytes()[:num_bytes])
    text = message(files, tmp_path)
    assert all(f"{path}: damaged" in text for path in files[:2])


def header(path: Path) -> tuple[dict[str, dict[str, list[int]]], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(path: Path, head: dict[str, dict[str, list[int]]], data: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "fault",
    [
        "beyond the end",
        "before the start",
        "overlapping",
        "backwards",
        "more data than told",
        "shape and offsets differ",
        "header longer than the file",
        "header is no JSON",
    ],
)
def test_headers_that_do_not_match_their_file_are_refused(
    files: list[Path], tmp_path: Path, fault: str
) -> None:
    path = shard_of(NORM, files)
    head, data = header(path)
    start, end = head[NORM]["data_offsets"]
    match fault:
        case "beyond the end":
            head[NORM]["data_offsets"] = [len(data), len(data) + end - start]
        case "before the start":
            head[NORM]["data_offsets"] = [start - len(data), end - len(data)]
        case "overlapping":
            other = next(name for name in head if name not in (NORM, "__metadata__"))
            head[NORM]["data_offsets"] = head[other]["data_offsets"]
        case "backwards":
            head[NORM]["data_offsets"] = [end, start]
        case "more data than told":
            data += b"\0" * 4
        case "shape and offsets differ":
            head[NORM]["shape"] = [9]
    with_header(path, head, data)
    if fault == "header longer than the file":
        path.write_bytes((10**12).to_bytes(8, "little") + path.read_bytes()[8:])
    elif fault == "header is no JSON":
        path.write_bytes((4).to_bytes(8, "little") + b"abcd" + data)
    assert f"{path}: damaged" in message(files, tmp_path)


# Memory

PEAK = """
import sys
from pathlib import Path
import torch
from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.weights import Source, fill_from_files
from lapilli.model.spec import *
def peak():  # of this program alone; what getrusage tells may be the one's that started it
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
torch.ones(9).bfloat16().float().max()  # what torch itself takes
model = blank_model(eval(sys.argv[1]))
before = peak()
files = sorted(Path(sys.argv[2]).glob("*.safetensors"))
fill_from_files(model, [Source(files, Path(sys.argv[2]))], dtype=torch.float32)
print(peak() - before)
"""
BIG = LlavaSpec(
    VisionSpec(16, 8, 32, 2, 2, 48), DecoderSpec(2048, 1024, 4, 8, 8, 128, 2816), image_token_id=5
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_loading_takes_the_model_and_one_shard_at_most(tmp_path: Path) -> None:
    shards: list[dict[str, Tensor]] = [{} for _ in range(6)]
    for name, value in stored(blank_model(BIG)).items():
        smallest = min(shards, key=lambda shard: sum(v.nbytes for v in shard.values()))
        smallest[name] = torch.zeros(value.shape, dtype=torch.bfloat16)
    for n, shard in enumerate(shards):
        save_file(shard, tmp_path / f"model-{n}.safetensors")
    model_bytes = 4 * sum(value.numel() for shard in shards for value in shard.values())
    shard_bytes = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    del shards
    gc.collect()
    command = [sys.executable, "-c", PEAK, repr(BIG), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert model_bytes * 0.9 < int(done.stdout) < model_bytes + shard_bytes + 8e6
    assert 2 * shard_bytes + 8e6 < model_bytes / 2  # or the claim would say little
