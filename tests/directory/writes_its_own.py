"""A training script that knows nothing of Holdfast: it writes checkpoints its own way, and resumes from the newest in its directory.

    writes_its_own.py OUT STEPS [--every N] [--seconds S] [--slow] [--crash-at N] [--on-signal exit|go-on] [--pointer] [--log FILE]

Its state is a digest over all steps so far: a resume from anything but a whole checkpoint of its own is seen at the end.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

WEIGHTS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--slow", action="store_true", help="a checkpoint is written in many pieces")
    parser.add_argument("--crash-at", type=int, default=-1)
    parser.add_argument("--torn-at", type=int, default=-1, help="dies with half of this checkpoint written")
    parser.add_argument("--on-signal", choices=["exit", "go-on"], default="")
    parser.add_argument("--pointer", action="store_true")
    parser.add_argument("--waits", action="store_true", help="imports and loads for ever")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--log", type=Path, required=True)
    o = parser.parse_args()
    told = []
    if o.on_signal:
        signal.signal(signal.SIGUSR1, lambda *_: told.append(True))

    if o.waits:
        say(o.log, "waits")
        time.sleep(3600)
    step, digest = 0, hashlib.sha256(b"start").hexdigest()
    found = sorted((int(m[1]), p) for p in o.out.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", p.name)))
    if found:
        at = found[-1][1]
        state = json.loads((at / "state.json").read_text())
        step, digest = state["step"], state["digest"]
        if (at / "model.bin").read_bytes() != weights(digest):
            say(o.log, f"TORN {at.name}")
            raise SystemExit(66)
        resume = os.environ["HOLDFAST_RESUME_FROM"]
        say(o.log, f"resumed {step} {Path(resume).name if resume else '-'}")
    else:
        say(o.log, "fresh")
    while step < o.steps:
        time.sleep(o.seconds)
        step += 1
        digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
        if step == o.crash_at:
            os._exit(5)
        if step % o.every == 0 or told:
            write(o, step, digest)
        if told:
            say(
                o.log,
                f"told {step} {json.loads(Path(os.environ['HOLDFAST_NOTICE']).read_text())['seconds'] is not None}",
            )
            told.clear()
            if o.on_signal == "exit":
                return
    say(o.log, f"finished {step} {digest}")


def write(o: argparse.Namespace, step: int, digest: str) -> None:
    at = o.out / f"checkpoint-{step}"
    (at / "sub").mkdir(parents=True, exist_ok=True)
    content = weights(digest)
    with (at / "model.bin").open("wb") as file:
        for n in range(0, len(content), 20_000):
            file.write(content[n : n + 20_000])
            file.flush()
            if o.slow:
                time.sleep(0.05)
            if step == o.torn_at and n > len(content) // 2:
                os._exit(9)
    (at / "sub" / "empty").touch()
    if not (at / "link").is_symlink():
        (at / "link").symlink_to("sub/empty")
    (at / "state.json").write_text(json.dumps({"step": step, "digest": digest}))
    if o.pointer:
        (o.out / "latest.new").write_text(at.name)
        (o.out / "latest.new").replace(o.out / "latest")
    every = sorted((int(p.name.split("-")[1]), p) for p in o.out.iterdir() if p.name.startswith("checkpoint-"))
    for _, old in every[: -o.keep]:
        shutil.rmtree(old)


def weights(digest: str) -> bytes:
    return hashlib.shake_256(digest.encode()).digest(WEIGHTS)


def say(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
