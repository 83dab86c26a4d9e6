"""Ids on the hub: what is downloaded from a hub on loopback, and what is found in a cache."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import COMMIT, Hub, serving

from lapilli.checkpoints import hub, loading
from lapilli.checkpoints.hub import HubName, hub_name
from lapilli.checkpoints.loading import find, load
from lapilli.errors import CheckpointError

ID = "someone/small-llava"
NEEDED = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
}


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    """A hub with one model, and files beside it that nobody should fetch."""
    online = Hub()
    online.add_folder(ID, folder)
    online.files[ID] |= {
        "pytorch_model.bin": b"pickle",
        "modeling_llava.py": b"raise SystemExit",
        "README.md": b"words",
        "onnx/model.safetensors": b"another format",
        "original/config.json": b"{}",
    }
    with serving(online):
        yield online


Run = Callable[..., subprocess.CompletedProcess[str]]
FIND = (
    "import sys; from lapilli.checkpoints.loading import find\n"
    "from lapilli.errors import CheckpointError\n"
    "try: print(find(sys.argv[1]))\n"
    "except CheckpointError as error: sys.exit(f'error: {error}')"
)


def environment(server: Hub | None, cache: Path, **more: str) -> dict[str, str]:
    """What a user would set; without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    url = server.url if server is not None else "http://127.0.0.1:9"  # nobody listens there
    return {
        **kept, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", **more,
    }  # fmt: skip


@pytest.fixture
def run(server: Hub, tmp_path: Path) -> Run:
    """Find a model by its name in a process of its own; the library reads its settings once."""

    def find_model(
        name: str = ID, *, at: Hub | None = server, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", FIND, name],
            env=environment(at, tmp_path / "home", **more),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return find_model


def fault(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that tells what went wrong."""
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line.removeprefix("error: ")


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llava-hf/llava-1.5-7b-hf", HubName("llava-hf/llava-1.5-7b-hf")),
        ("a/b@v1.0", HubName("a/b", "v1.0")),
        ("a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        ("llava-1.5-7b", HubName("llava-hf/llava-1.5-7b-hf")),
        ("llava-1.5-7b@abc", HubName("llava-hf/llava-1.5-7b-hf", "abc")),
    ],
)
def test_ids_and_short_names_stand_for_repositories(text: str, name: HubName) -> None:
    assert hub_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "model", "./a/b", "/a/b", "~/a", "../b", "a/..", "a/b/c", "a\\b", "", "a/", "/b", "a/b c",
        "a--b/c", "a/b..c", "a/.b", "-a/b", "a/b.git", "a/b@", "a/b@../../x", "a/b@/x", "a/b@x@y",
        "https://huggingface.co/a/b", f"a/{'b' * 100}", "a/b\n",
    ],
)  # fmt: skip
def test_other_texts_are_no_ids(text: str) -> None:
    assert hub_name(text) is None


def test_a_mistyped_folder_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("runs/model") is not None
    (tmp_path / "runs").mkdir()
    assert hub_name("runs/model") is None
    with pytest.raises(CheckpointError, match="runs/model: neither a model folder nor a known"):
        find("runs/model")


def test_a_folder_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID).mkdir(parents=True)
    monkeypatch.setattr(hub, "find", None)
    assert find(ID) == Path(ID)


def test_a_path_is_never_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find", None)
    with pytest.raises(CheckpointError, match="neither a model folder nor a known name"):
        find(Path(ID))


# What is downloaded


def test_an_id_is_downloaded_once_and_then_found_without_the_network(
    server: Hub, run: Run, tmp_path: Path, folder: Path
) -> None:
    first = run()
    assert first.returncode == 0, first.stderr
    place = Path(first.stdout.strip())
    assert place.is_relative_to(tmp_path / "home" / "hub" / "models--someone--small-llava")
    assert {path.name for path in place.iterdir()} == NEEDED
    assert set(server.downloads()) == NEEDED
    for path in folder.iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()
    assert load(place, device="cpu")[0].spec == load(folder, device="cpu")[0].spec

    server.asked.clear()
    assert run().stdout == first.stdout
    assert run(HF_HUB_OFFLINE="1").stdout == first.stdout
    assert run(at=None).stdout == first.stdout
    assert run(f"{ID}@{COMMIT}").stdout == first.stdout
    assert server.asked == []


def test_an_interrupted_download_goes_on_with_what_is_missing(server: Hub, run: Run) -> None:
    place = Path(run().stdout.strip())
    (place / "model.safetensors").resolve().unlink()
    (place / "model.safetensors").unlink()
    server.asked.clear()
    assert run().returncode == 0
    assert set(server.downloads()) == {"model.safetensors"}


@pytest.mark.slow  # the library tries five times
def test_a_lost_connection_is_one_line_and_leaves_nothing_half(
    server: Hub, run: Run, tmp_path: Path
) -> None:
    server.breaks_after = 100
    broken = run(PYTHONWARNINGS="ignore", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert "files that came whole are kept" in fault(broken)
    server.breaks_after = None
    assert run().returncode == 0


def test_an_interrupt_ends_at_once_and_the_next_call_completes(
    server: Hub, run: Run, tmp_path: Path
) -> None:
    server.delay_s = 60
    process = subprocess.Popen(
        [sys.executable, "-c", FIND, ID], env=environment(server, tmp_path / "home"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while "model.safetensors" not in server.downloads() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.wait()
    server.delay_s = 0
    assert run().returncode == 0


def test_processes_that_ask_together_download_each_file_once(server: Hub, tmp_path: Path) -> None:
    server.delay_s = 1
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIND, ID],
            env=environment(server, tmp_path / "home", LOCAL_RANK=str(rank), WORLD_SIZE="3"),
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    places = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(places) == 1
    assert server.downloads()["model.safetensors"] == 1


def test_a_token_opens_what_is_gated_and_is_never_shown(server: Hub, run: Run) -> None:
    server.gated.add(ID)
    refused = run(HF_TOKEN="hf_wrong")
    assert f"{ID}: its owner shows it to those alone who agreed to the terms" in fault(refused)
    assert "hf_wrong" not in refused.stdout + refused.stderr
    allowed = run(HF_TOKEN=server.token)
    assert allowed.returncode == 0
    assert server.token not in allowed.stdout + allowed.stderr


# What is refused


def test_a_repository_that_is_not_there_is_said(run: Run) -> None:
    text = fault(run("someone/nothing"))
    assert text.startswith("someone/nothing: neither a folder here nor a repository")


def test_a_revision_that_is_not_there_is_said(run: Run) -> None:
    assert fault(run(f"{ID}@v9")).startswith(f"{ID}@v9: the repository has no such revision")


def test_no_network_is_said(run: Run) -> None:
    assert fault(run(at=None)).startswith(f"{ID}: the hub cannot be reached")


def test_offline_without_a_cache_is_said(server: Hub, run: Run, tmp_path: Path) -> None:
    text = fault(run(HF_HUB_OFFLINE="1"))
    assert f"{ID}: not whole in {tmp_path / 'home' / 'hub'}, and HF_HUB_OFFLINE" in text
    assert server.asked == []


def test_half_a_model_in_the_cache_is_not_taken_for_whole(run: Run) -> None:
    place = Path(run().stdout.strip())
    (place / "tokenizer.json").unlink()
    assert "not whole in" in fault(run(HF_HUB_OFFLINE="1"))


@pytest.mark.parametrize(("status", "said"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "418")])
def test_a_hub_that_refuses_is_said(server: Hub, run: Run, status: int, said: str) -> None:
    server.status = status
    assert said in fault(run())


def test_pickled_weights_are_refused_before_anything_is_downloaded(server: Hub, run: Run) -> None:
    del server.files[ID]["model.safetensors"]
    text = fault(run())
    assert "its weights are pickled, which can run code, and nothing was downloaded" in text
    del server.files[ID]["pytorch_model.bin"]
    assert "holds no model.safetensors" in fault(run())
    del server.files[ID]["config.json"]
    assert "has no config.json" in fault(run())
    assert not server.downloads()


def info(size: int) -> Any:
    """What the hub tells of a repository with weights of that size."""
    files = [
        {"rfilename": "config.json", "size": 9},
        {"rfilename": "model.safetensors", "size": size},
    ]
    return lambda *_args, **_kwargs: huggingface_hub.ModelInfo(id=ID, sha=COMMIT, siblings=files)


def test_what_does_not_fit_on_the_disk_is_refused_before_the_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info(10**18))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(CheckpointError, match=rf"{ID}: takes 1000000000\.0 GB, and .* GB free"):
        hub.find(HubName(ID))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), "is full; free some, or set HF_HUB_CACHE"),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), "/c: Permission denied"),
        (ValueError("https://cdn/x?Signature=secret"), "the download broke (ValueError)"),
    ],
)
def test_a_download_that_fails_is_one_line_without_addresses(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info(10))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError) as caught:
        hub.find(HubName(ID))
    assert str(caught.value).startswith(f"{ID}: ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# What it costs


def test_other_models_do_not_load_the_library_of_the_hub(folder: Path) -> None:
    code = f"import sys; from lapilli import load; load({str(folder)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "huggingface_hub" not in done.stdout.split()


def test_a_short_name_is_looked_for_under_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HubName] = []
    monkeypatch.setattr(loading.hub, "find", lambda name: asked.append(name) or Path("there"))
    assert find("llava-1.5-7b") == Path("there")
    assert asked == [HubName("llava-hf/llava-1.5-7b-hf")]


@pytest.fixture
def pickled(server: Hub) -> Hub:
    """The hub, whose model has pickled weights alone."""
    del server.files[ID]["model.safetensors"]
    server.files[ID] |= {
        "mm_projector.bin": b"pickle", "training_args.bin": b"pickle", "model.pt": b"pickle"
    }  # fmt: skip
    return server


def test_pickled_weights_are_downloaded_where_they_are_allowed(
    pickled: Hub, tmp_path: Path
) -> None:
    code = FIND.replace("find(sys.argv[1])", "find(sys.argv[1], allow_pickle=True)")
    done = subprocess.run(
        [sys.executable, "-c", code, ID],
        env=environment(pickled, tmp_path / "cache"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fetched = {path.name for path in Path(done.stdout.strip()).iterdir()}
    assert fetched == NEEDED - {"model.safetensors"} | {"pytorch_model.bin", "mm_projector.bin"}


def test_safetensors_go_before_pickles_that_are_allowed(server: Hub, tmp_path: Path) -> None:
    code = FIND.replace("find(sys.argv[1])", "find(sys.argv[1], allow_pickle=True)")
    done = subprocess.run(
        [sys.executable, "-c", code, ID],
        env=environment(server, tmp_path / "cache"), capture_output=True, text=True,
    )  # fmt: skip
    assert {path.name for path in Path(done.stdout.strip()).iterdir()} == NEEDED


def test_an_original_model_and_its_tower_are_whole_in_the_cache_by_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.json"
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_args, **_more: str(config)
    )
    config.write_text('{"architectures": ["LlavaLlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.cached(HubName(ID)) is hub.cached_tower(HubName(ID)) is None
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert hub.cached(HubName(ID)) == tmp_path
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert hub.cached_tower(HubName(ID)) == tmp_path
    config.write_text('{"model_type": "llava"}')
    assert hub.cached(HubName(ID)) is None
