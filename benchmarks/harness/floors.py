"""What the machine can do: raw writes, reads and copies, by the plainest program that reaches the hardware's limit."""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness import files
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.usage import metered


def memcpy(source: mmap.mmap, count: int, threads: int) -> Contender:
    """memmove from the state into shared memory that has been touched before, in pieces of 16 MiB."""

    def rounds() -> Rounds:
        target = mmap.mmap(-1, count)
        target[:count:4096] = bytes(len(range(0, count, 4096)))
        to, start = files.address(target), files.address(source)
        pieces = [
            (to + at, start + at, min(files.PIECE_BYTES, count - at)) for at in range(0, count, files.PIECE_BYTES)
        ]
        with ThreadPoolExecutor(threads) as pool:
            yield None
            while True:
                with metered(count) as work:
                    list(pool.map(lambda p: ctypes.memmove(*p), pieces))
                yield work.sample()
                yield None

    return Contender(
        f"memcpy, {threads} thread{'s' * (threads > 1)}", Kind.FLOOR, rounds, "", "into prefaulted shared memory"
    )


def direct_write(source: mmap.mmap, count: int, folder: Path, threads: int) -> Contender:
    def rounds() -> Rounds:
        path = folder / f"raw-{threads}"
        view = memoryview(source)[: count // files.PAGE * files.PAGE]
        yield None
        while True:
            with metered(view.nbytes) as work:
                files.write_direct(path, view, threads=threads)
            yield work.sample()
            path.unlink()
            yield None

    return Contender(
        f"O_DIRECT write, {threads} in flight",
        Kind.FLOOR,
        rounds,
        "",
        "new file, preallocated, 16 MiB pieces, fdatasync",
    )


def direct_read(path: Path, count: int, threads: int, slot: Path) -> Contender:
    """Into the file `slot` in memory, the one that Holdfast reads into: how large a request the disk gets depends on how the pages of the target lie in the
    machine's memory, and two targets differ by up to a third."""

    def rounds() -> Rounds:
        with slot.open("r+b") as file:
            target = mmap.mmap(file.fileno(), count)
        target[:count:4096] = bytes(len(range(0, count, 4096)))
        view = memoryview(target)
        yield None
        while True:
            files.forget([path])
            with metered(count) as work:
                files.read_direct(path, view, threads=threads)
            yield work.sample()
            yield None

    return Contender(
        f"O_DIRECT read, {threads} in flight",
        Kind.FLOOR,
        rounds,
        "",
        "into the same prefaulted slot, 16 MiB pieces",
    )


def fio(folder: Path, count: int, kind: str) -> Contender:
    """`kind`: write or read. The rate is fio's own, without the start of the program."""

    def rounds() -> Rounds:
        program = shutil.which("fio")
        if program is None:
            raise FileNotFoundError("fio is not installed (Debian: apt-get install fio)")
        path = folder / f"fio-{kind}"
        size = count >> 20 << 20
        command = [
            program, "--name=floor", f"--filename={path}", f"--rw={kind}", "--direct=1", "--bs=16M", "--iodepth=16", "--ioengine=libaio",
            f"--size={size}", "--fallocate=posix", "--output-format=json", "--thread",
        ]  # fmt: skip
        command += ["--end_fsync=1"] if kind == "write" else []
        yield None
        while True:
            with metered(size) as work:
                found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            job = found["jobs"][0][kind]
            own = max(job["runtime"], found["jobs"][0].get("job_runtime", 0) if kind == "write" else 0) / 1000
            yield Sample(own or work.seconds, int(job["io_bytes"]), work.cpu_seconds, {"wall s": work.seconds})
            if kind == "write":
                path.unlink()
            yield None
        # a file that is read stays until the folder goes

    return Contender(f"fio {kind}", Kind.FLOOR, rounds, fio_version(), "libaio, direct, 16 MiB, depth 16")


def fio_version() -> str:
    program = shutil.which("fio")
    if program is None:
        return ""
    return (
        subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        .stdout.strip()
        .removeprefix("fio-")
    )


def cores() -> int:
    return len(os.sched_getaffinity(0))
