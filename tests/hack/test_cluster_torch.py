"""torch without CUDA: which packages are left out, which libraries are faked with which symbols, and what those say."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hack.cluster.artefacts import torch_cpu
from hack.cluster.artefacts.torch_cpu import Stub, cpu_requirements, plan_stubs

LOCK = """\
numpy==2.4.6 \\
    --hash=sha256:aa
nvidia-cublas==13.4 \\
    --hash=sha256:bb \\
    --hash=sha256:cc
torch==2.15.0 \\
    --hash=sha256:dd
triton==3.9.0 \\
    --hash=sha256:ee
"""

HEADER = """
Dynamic Section:
  NEEDED               libcublas.so.13
  NEEDED               libnccl.so.2
  NEEDED               libcuda.so.1
  NEEDED               libc10.so
  NEEDED               libc.so.6

Version References:
  required from libcublas.so.13:
    0x0d 0x00 12 libcublas.so.13
  required from libc.so.6:
    0x0d 0x00 13 GLIBC_2.14
"""

UNDEFINED = """\
                 U cublasCreate_v2@libcublas.so.13
                 U malloc@GLIBC_2.14
                 U ncclSend
                 U somethingElse
"""


def test_packages_for_a_gpu_are_left_out_with_their_hashes() -> None:
    assert cpu_requirements(LOCK) == ("numpy==2.4.6 \\\n    --hash=sha256:aa\ntorch==2.15.0 \\\n    --hash=sha256:dd\n")


def test_the_real_lock_file_keeps_torch_and_numpy_and_hashes_for_all() -> None:
    kept = cpu_requirements(torch_cpu.LOCK.read_text())
    packages = re.findall(r"^([a-z0-9-]+)==", kept, re.MULTILINE)
    assert {"torch", "numpy", "sympy"} <= set(packages)
    assert not [name for name in packages if name.startswith(("nvidia", "cuda"))]
    assert all("--hash=sha256:" in block for block in re.split(r"^(?=\S)", kept, flags=re.MULTILINE) if block.strip())


def test_symbols_are_told_by_their_version_or_by_the_prefix_of_their_name() -> None:
    assert plan_stubs([HEADER], [UNDEFINED], {"libc10.so"}) == [
        Stub("libcublas.so.13", {"libcublas.so.13": frozenset({"cublasCreate_v2"})}),
        Stub("libnccl.so.2", {"": frozenset({"ncclSend"})}),
    ]


def test_a_stub_defines_each_symbol_under_its_version() -> None:
    stub = Stub("libx.so", {"V1": frozenset({"b", "a"}), "": frozenset({"c"})})
    assert stub.source().count("return 100;") == 3
    assert stub.version_script() == "V1 { global: a; b; };\n"


NUMBERS = [
    "cudaGetLastError", "cudaPeekAtLastError", "cudaStreamIsCapturing", "cuptiGetResultString", "cudnnGetLastErrorString", "nvrtcGetProgramLog",
    "nvrtcGetLoweredName", "ncclGetVersion", "ncclCommGetAsyncError",
]  # fmt: skip
TEXTS = {
    "cudaGetErrorString": "no CUDA-capable device is detected", "cudaGetErrorName": "cudaErrorNoDevice",
    "cudnnGetErrorString": "no CUDA-capable device is detected", "cusparseGetErrorString": "no CUDA-capable device is detected",
    "cusparseGetErrorName": "cudaErrorNoDevice", "cusparseLtGetErrorString": "no CUDA-capable device is detected",
    "cublasGetStatusString": "no CUDA-capable device is detected", "cublasLtGetStatusName": "cudaErrorNoDevice",
    "nvrtcGetErrorString": "no CUDA-capable device is detected", "ncclGetErrorString": "no CUDA-capable device is detected",
    "ncclGetLastError": "no CUDA-capable device is detected",
}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A stub, compiled as they are."""
    directory = tmp_path_factory.mktemp("stub")
    source = directory / "stub.c"
    source.write_text(Stub("libx.so", {"": frozenset([*NUMBERS, *TEXTS])}).source())
    subprocess.run(
        ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib", "-o", directory / "libx.so", source], check=True
    )
    return ctypes.CDLL(str(directory / "libx.so"))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_function_fails_with_no_device(library: ctypes.CDLL, name: str) -> None:
    assert library[name]() == 100


@pytest.mark.parametrize("name", TEXTS)
def test_a_function_that_returns_a_text_returns_one(library: ctypes.CDLL, name: str) -> None:
    function = library[name]
    function.restype = ctypes.c_char_p
    assert function(100) == TEXTS[name].encode()


CALLS = """
import torch
assert not torch.cuda.is_available()
for call in (torch.cuda.is_current_stream_capturing, torch.cuda.current_device, lambda: torch.zeros(1, device="cuda"), lambda: torch.zeros(1).pin_memory()):
    try:
        call()
    except RuntimeError as e:
        print("raised", type(e).__name__, str(e).splitlines()[0])
"""


def test_torch_raises_where_it_needs_a_gpu(tmp_path: Path) -> None:
    """It does not end the process. With the real libraries and no driver it raises as well, in other words."""
    done = subprocess.run([sys.executable, "-c", CALLS], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^raised ", done.stdout, re.MULTILINE)) == 4, done.stdout
