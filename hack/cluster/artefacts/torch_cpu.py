"""torch for the CPU alone, from the ordinary wheel and without 2.4 GB of CUDA libraries. For tests; never to be shipped.

The Linux wheels of torch on PyPI are built for CUDA: they are linked with a dozen CUDA libraries, which the loader wants
to find even where there is no GPU. So the wheel is installed without them, and each is replaced by an empty one: every
symbol torch refers to is there, under its version, as a function that returns 100 (cudaErrorNoDevice).
`torch.cuda.is_available()` is then False and everything on the CPU works, gloo included. (Truly empty libraries are not
enough: some symbols are bound when torch is loaded. Returning 999 instead gives warnings about an unknown error.)

What is said to return a text returns one: torch puts it into its messages, and 100 is no address. So a call that needs a
GPU raises, as it does with the real libraries: there each function fails too where no driver is installed, with
cudaErrorInsufficientDriver, and so `torch.cuda.is_current_stream_capturing()` does, which transformers asks and expects.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.paths import REPOSITORY
from hack.cluster.python import MINOR, interpreter

LOCK = REPOSITORY / "requirements-torch.lock"

#: What only a GPU needs: three quarters of the download.
_GPU_ONLY = re.compile(r"^(nvidia-|cuda-|triton\b|setuptools\b)")
_CUDA_LIBRARY = re.compile(r"^lib(cu|nv|nccl)")
#: These have no symbol versions; their symbols are told by the prefix of the name.
_UNVERSIONED = {"libnccl": "nccl", "libcufile": "cuFile", "libcusparseLt": "cusparseLt"}
#: These return a text (`const char *`). Others of a like name write one into an argument and return a number.
_TEXT = re.compile(
    r"^(cuda|cudnn|cusparse|cusparseLt|nvrtc|nccl)GetError(String|Name)$|^cublas(Lt)?GetStatus(String|Name)$|^ncclGetLastError$"
)
_SAID = {"String": "no CUDA-capable device is detected", "Name": "cudaErrorNoDevice"}
#: Not needed to run; torch/bin is, because the import looks for torch_shm_manager.
_UNWANTED = ("include", "share", "test")


@dataclass(frozen=True)
class Stub:
    """An empty library: symbols by version, "" for those without one."""

    library: str
    symbols: Mapping[str, frozenset[str]]

    def source(self) -> str:
        names = sorted(name for group in self.symbols.values() for name in group)
        return "".join(map(_function, names))

    def version_script(self) -> str:
        groups = ((version, "; ".join(sorted(names))) for version, names in self.symbols.items() if version)
        return "".join(f"{version} {{ global: {names}; }};\n" for version, names in groups)


def _function(name: str) -> str:
    if _TEXT.match(name):
        return f'const char *{name}(void) {{ return "{_SAID["Name" if name.endswith("Name") else "String"]}"; }}\n'
    return f"int {name}(void) {{ return 100; }}\n"


def torch_cpu() -> Artefact:
    return Artefact(
        name="torch",
        what="torch for the CPU",
        usual_seconds=60,
        made_from=(cpu_requirements(LOCK.read_text()), f"{MINOR}", Path(__file__)),
        make=_make,
        mostly_waits=True,
    )


def cpu_requirements(lock: str) -> str:
    """The lock file without the packages only a GPU needs; versions and hashes stay. Pure."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(block for block in blocks if not _GPU_ONLY.match(block))


def _make(workshop: Workshop, directory: Path) -> None:
    requirements = workshop.scratch / "requirements.txt"
    requirements.write_text(cpu_requirements(LOCK.read_text()))
    pip = (interpreter(), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", directory)
    workshop.run(*pip, "--no-deps", "--require-hashes", "-r", requirements)
    for name in _UNWANTED:
        shutil.rmtree(directory / "torch" / name, ignore_errors=True)
    libraries = directory / "torch/lib"
    for stub in _stubs(workshop, sorted(libraries.glob("*.so*"))):
        _compile(workshop, stub, libraries)


def _stubs(workshop: Workshop, present: list[Path]) -> list[Stub]:
    headers = [workshop.read("objdump", "-p", library) for library in present]
    nm = ("nm", "-D", "--undefined-only", "--with-symbol-versions")
    undefined = [workshop.read(*nm, library) for library in present]
    return plan_stubs(headers, undefined, {library.name for library in present})


def plan_stubs(headers: Iterable[str], undefined: Iterable[str], present: set[str]) -> list[Stub]:
    """The libraries to fake and their symbols, from the output of objdump and nm. Pure."""
    needed: set[str] = set()
    library_of: dict[str, str] = {}
    for header in headers:
        needed |= {name for name in re.findall(r"NEEDED\s+(\S+)", header) if _is_missing(name, present)}
        for library, versions in re.findall(r"required from (\S+):\n((?:    .*\n)+)", header):
            library_of |= {line.split()[-1]: library for line in versions.splitlines() if line.strip()}
    symbols: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in needed}
    for line in (line for listing in undefined for line in listing.splitlines() if line.strip()):
        name, *version = re.split("@+", line.split()[-1])
        library = library_of.get(version[0], "") if version else _by_prefix(name, needed)
        if library in needed:
            symbols[library][version[0] if version else ""].add(name)
    return [
        Stub(library, {version: frozenset(names) for version, names in symbols[library].items()})
        for library in sorted(needed)
    ]


def _is_missing(library: str, present: set[str]) -> bool:
    """libcuda belongs to the driver, and torch opens it only when it looks for a GPU."""
    return bool(_CUDA_LIBRARY.match(library)) and library not in present and not library.startswith("libcuda.so")


def _by_prefix(symbol: str, needed: set[str]) -> str:
    for library in needed:
        prefix = _UNVERSIONED.get(library.split(".so")[0])
        if prefix and symbol.startswith(prefix):
            return library
    return ""


def _compile(workshop: Workshop, stub: Stub, into: Path) -> None:
    source, script = workshop.scratch / "stub.c", workshop.scratch / "stub.map"
    source.write_text(stub.source())
    script.write_text(stub.version_script())
    versions = [f"-Wl,--version-script,{script}"] if stub.version_script() else []
    library = ("-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib", "-s", f"-Wl,-soname,{stub.library}")
    workshop.run("gcc", *library, *versions, "-o", into / stub.library, source)
