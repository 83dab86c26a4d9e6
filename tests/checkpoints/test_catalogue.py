"""What is said of models that are known by name, whether they are on this disk or not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lapilli.checkpoints import catalogue, hf, loading, native, shards
from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.catalogue import details, entries
from lapilli.checkpoints.hub import hub_name
from lapilli.checkpoints.loading import load
from lapilli.checkpoints.published import PUBLISHED
from lapilli.checkpoints.shards import Contents
from lapilli.errors import CheckpointError
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "llava-1.5-7b"
NAMES = ["lapilli-tiny", *PUBLISHED]

CLIP = VisionSpec()
SIGLIP = VisionSpec(
    384, 14, 1152, 26, 16, 4304, "gelu_tanh", 1e-6,
    has_class_token=False, has_pre_norm=False, has_patch_bias=True, feature_layer=-1,
)  # fmt: skip
MISTRAL = DecoderSpec(32064, 4096, 32, 32, 8, 128, 14336, max_positions=32768)
DECODERS = {
    "Vicuna 7B v1.5": DecoderSpec(),
    "Vicuna 13B v1.5": DecoderSpec(32064, 5120, 40, 40, 40, 128, 13824),
    "Mistral 7B Instruct v0.2": MISTRAL,
    "Mistral 7B v0.1": MISTRAL,
    "Nous Hermes 2 Yi 34B": DecoderSpec(64064, 7168, 60, 56, 8, 128, 20480),
    "Llama 3 8B Instruct": DecoderSpec(
        128320, 4096, 32, 32, 8, 128, 14336, max_positions=8192
    ),
    "Qwen2 0.5B Instruct": DecoderSpec(
        152000, 896, 24, 14, 2, 64, 4864, has_qkv_bias=True, is_tied=True, max_positions=32768
    ),
    "Qwen2 7B Instruct": DecoderSpec(
        152128, 3584, 28, 28, 4, 128, 18944, has_qkv_bias=True, max_positions=32768
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(cache: Path, repository: str, folder: Path) -> Path:
    """Lay a folder down as the hub's library does."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


@pytest.fixture
def embedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in the place of the embedded one."""
    model, processor = hf.load(folder)
    own = folder.parent / "own"
    native.save(own, model.bfloat16(), processor)
    for module in (loading, catalogue):
        monkeypatch.setattr(module, "embedded_folder", lambda: own)
    return own


# What is published


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_follow_from_the_architecture(name: str) -> None:
    model = PUBLISHED[name]
    vision = CLIP if model.vision_tower.startswith("CLIP") else SIGLIP
    spec = LlavaSpec(vision, DECODERS[model.decoder])
    counted = sum(parameter.numel() for parameter in blank_model(spec).parameters())
    assert model.parameters == round(counted, -6)
    assert model.features_per_tile == vision.num_features
    assert str(vision.image_size) in model.vision_tower
    assert model.context == spec.decoder.max_positions
    assert model.projector == spec.projector


def test_names_are_short_and_lead_to_one_repository_each() -> None:
    ids = {model.hub_id for model in PUBLISHED.values()}
    assert len(ids) == len(PUBLISHED)
    for name, model in PUBLISHED.items():
        assert name == model.name
        assert len(name) <= 20
        assert hub_name(name) == hub_name(model.hub_id)


# The table


def test_nothing_is_asked_of_the_network(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", None)
    assert [entry.name for entry in entries()] == NAMES


def test_the_embedded_model_is_counted(embedded: Path) -> None:
    model, _ = load(embedded, device="cpu")
    count = sum(parameter.numel() for parameter in model.parameters())
    entry = entries()[0]
    assert entry.folder == embedded
    assert entry.parameters == count
    assert entry.size_bytes == (embedded / "model.safetensors").stat().st_size
    assert entry.memory_bytes == {"bf16": 2 * count, "int8": count, "int4": count // 2}


def test_an_embedded_model_that_is_not_here_is_listed(embedded: Path) -> None:
    (embedded / "model.safetensors").unlink()
    entry = entries()[0]
    assert entry.parameters is entry.size_bytes is entry.memory_bytes is entry.folder is None


def test_damaged_embedded_weights_are_said(embedded: Path) -> None:
    (embedded / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        entries()


def test_what_is_in_the_cache_is_here_and_counted(
    embedded: Path, folder: Path, cache: Path
) -> None:
    before = {entry.name: entry for entry in entries()}[NAME]
    assert before.folder is None
    assert before.parameters == PUBLISHED[NAME].parameters
    assert before.size_bytes == 2 * before.parameters
    place = put_into_cache(cache, PUBLISHED[NAME].hub_id, folder)
    found = {entry.name: entry for entry in entries()}
    assert found[NAME].folder == place
    assert found[NAME].size_bytes == (place / "model.safetensors").stat().st_size
    assert [name for name in PUBLISHED if found[name].folder] == [NAME]
    (place / "tokenizer.json").unlink()
    assert {entry.name: entry for entry in entries()}[NAME] == before


def test_a_damaged_model_in_the_cache_does_not_hide_the_others(
    embedded: Path, folder: Path, cache: Path
) -> None:
    place = put_into_cache(cache, PUBLISHED[NAME].hub_id, folder)
    (place / "model.safetensors").write_bytes(b"damaged")
    found = {entry.name: entry for entry in entries()}
    assert list(found) == NAMES
    assert found[NAME].folder is None


# One model


def test_a_folder_is_shown_with_its_numbers(folder: Path) -> None:
    found = details(str(folder))
    assert found.spec == load(folder, device="cpu")[0].spec
    assert (found.entry.name, found.entry.source) == (str(folder), "a folder")
    assert (found.entry.stored_as, found.entry.license) == ("F32", "unknown")
    assert found.published is None


def test_the_embedded_model_is_shown_with_its_numbers(embedded: Path) -> None:
    found = details("lapilli-tiny")
    assert found.spec == load(embedded, device="cpu")[0].spec
    assert (found.entry.stored_as, found.entry.license) == ("BF16", "Apache-2.0")


@pytest.mark.parametrize("name", [NAME, PUBLISHED[NAME].hub_id])
def test_a_known_model_is_shown_whether_it_is_here_or_not(
    name: str, folder: Path, cache: Path
) -> None:
    absent = details(name)
    assert absent.published == PUBLISHED[NAME]
    assert absent.spec is absent.entry.stored_as is absent.entry.folder is None
    assert absent.entry.license == "Llama 2"
    put_into_cache(cache, PUBLISHED[NAME].hub_id, folder)
    here = details(name)
    assert here.published == PUBLISHED[NAME]
    assert here.spec == load(folder, device="cpu")[0].spec


def test_another_repository_is_shown_where_it_is_in_the_cache(folder: Path, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="a/b: not in the hub's cache"):
        details("a/b")
    put_into_cache(cache, "a/b", folder)
    found = details("a/b")
    assert (found.entry.source, found.entry.license) == ("a/b", "unknown")
    assert found.spec is not None


def test_headers_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def contents(paths: list[Path]) -> Contents:
        read.extend(paths)
        return shards.contents(paths)

    monkeypatch.setattr(catalogue, "contents", contents)
    assert details(str(folder)).entry.stored_as == "F32"
    assert read == [folder / "model.safetensors"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = re.escape(", ".join(NAMES))
    with pytest.raises(CheckpointError, match=f"nothing: neither a model folder .* {known}"):
        details("nothing")


def test_weights_in_shards_are_counted_together(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names, files = sorted(weights), {}
    for n in range(2):
        path = folder / f"model-{n}.safetensors"
        save_file({name: weights[name].to(torch.float16) for name in names[n::2]}, path)
        files |= dict.fromkeys(names[n::2], path.name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = details(str(folder))
    assert found.entry.parameters == sum(value.numel() for value in weights.values())
    assert found.entry.stored_as == "F16"
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: missing"):
        details(str(folder))


def test_the_catalogue_is_shown_without_torch() -> None:
    code = (
        "import sys; from lapilli.checkpoints.catalogue import entries; entries(); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(done.stdout.split())
