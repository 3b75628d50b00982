"""torch without CUDA: which packages are left out, and which libraries are faked with which symbols."""

import re

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
