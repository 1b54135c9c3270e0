"""abi.h is the one source of the C ABI: the library exports what it declares and no more, and nobody repeats it."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from building import needs

from edgellm.errors import EdgellmError
from edgellm.kernels import library
from edgellm.kernels.abi import codes, constants, ffi

KERNELS = Path(library.__file__).parent
TEXT = (KERNELS / "abi.h").read_text()
FUNCTIONS = set(re.findall(r"^[a-z].*?\*?(edgellm_\w+)\(", TEXT, re.MULTILINE))
CONSTANTS = re.findall(r"^static const \w+ (\w+) = (\d+);", TEXT, re.MULTILINE)


def test_it_is_plain_c_without_a_preprocessor():
    assert not re.search(r"^\s*#", TEXT, re.MULTILINE)


def test_the_library_exports_its_functions_and_nothing_else():
    needs("nm")
    path = next(path for path in library._candidates() if path.is_file())
    listing = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    assert {name for kind, name in re.findall(r" ([A-Z]) (\w+)$", listing, re.MULTILINE) if kind == "T"} == FUNCTIONS
    assert all(ffi.typeof(getattr(library.library(), name)).kind == "function" for name in FUNCTIONS)


def test_python_has_its_constants():
    assert len(CONSTANTS) > 10 and all(getattr(constants, name) == int(value) for name, value in CONSTANTS)
    assert codes("Status") == {
        "OK": 0, "BAD_POINTER": 1, "BAD_ENCODING": 2, "BAD_SHAPE": 3, "BAD_LENGTH": 4, "BAD_THREADS": 5,
        "BAD_TARGET": 6, "NO_MEMORY": 7,
    }  # fmt: skip
    assert library.ENCODINGS == {
        "int4": 0, "int8": 1, "bf16": 2, "f16": 3, "f32": 4, "int4s": 5, "q5_0": 6, "q5_1": 7, "iq4_nl": 8, "mxfp4": 9,
        "iq4_xs": 10, "q2_k": 11, "q3_k": 12, "q4_k": 13, "q5_k": 14, "q6_k": 15,
    }  # fmt: skip
    assert library.GROUP_BYTES == {
        "int4": 320, "int4s": 288, "int8": 544, "q5_0": 352, "q5_1": 384, "iq4_nl": 288, "mxfp4": 272, "iq4_xs": 272,
        "q2_k": 168, "q3_k": 220, "q4_k": 288, "q5_k": 352, "q6_k": 420,
    }  # fmt: skip


def test_every_bad_status_is_said_in_words():
    bad = [code for name, code in codes("Status").items() if name != "OK"]
    assert sorted(map(library.meaning, bad)) == sorted(library._STATUS.values())
    assert library.meaning(99) == "status 99"


def test_no_other_file_of_the_kernels_defines_its_names():
    names = [name for name, _ in CONSTANTS] + [*codes("Status"), *codes("Encoding")]
    again = re.compile(rf"(constexpr|const|enum|#define)[^;()]*\b({'|'.join(names)})\b\s*=[^=]")
    files = [file for file in KERNELS.iterdir() if file.suffix in (".h", ".cpp") and file.name != "abi.h"]
    assert len(files) > 20 and [file.name for file in files if again.search(file.read_text())] == []


def test_the_wheel_keeps_it():
    settings = tomllib.loads((KERNELS.parents[1] / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]
    assert settings["exclude"] == ["**/*.cpp", "**/*.h", "!**/abi.h"]


def test_a_library_with_another_interface_is_refused(monkeypatch, tmp_path):
    needs("g++")
    built = tmp_path / "libedgellm.so"
    source = 'extern "C" int edgellm_abi() { return 3; }'
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", built], input=source, text=True, check=True)
    monkeypatch.setattr(library, "_candidates", lambda: [built])
    library.library.cache_clear()
    try:
        with pytest.raises(EdgellmError, match=f"interface 3, this edgellm needs {constants.ABI_VERSION}. Rebuild"):
            library.target()
    finally:
        library.library.cache_clear()
