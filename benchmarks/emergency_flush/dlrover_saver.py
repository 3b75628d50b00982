"""DLRover's flash checkpoint: a copy in shared memory at every step, and at SIGTERM its saver writes the newest of them to the disk; then boto3 uploads it.

    python -m benchmarks.emergency_flush.dlrover_saver ORDER, as hf_trainer

The saver is asked as the handler that DLRover's agent installs for SIGTERM asks it (`save_shm_to_storage`); here agent and training are one process.
"""

import os
import signal
import time
from pathlib import Path

from benchmarks.emergency_flush import sending
from benchmarks.emergency_flush.sending import Uploader, say
from benchmarks.harness import states


def main() -> None:
    order = sending.order()
    alone = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(alone | {"ELASTIC_JOB_NAME": f"bench-{os.getpid()}"})
    from dlrover.python.elastic_agent.torch.ckpt_saver import AsyncCheckpointSaver
    from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
    from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

    AsyncCheckpointSaver.start_async_saving_ckpt()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    uploader = Uploader(order)
    state, folder = states.make(order["mebibytes"]), Path(order["folder"])
    checkpointer, step = DdpCheckpointer(str(folder)), 0
    while not asked:
        step += 1
        time.sleep(order["step_seconds"])
        checkpointer.save_checkpoint(step, dict(state.tensors), str(folder / f"{step}.pt"), StorageType.MEMORY)
        if step == 3:
            say("training")
    saver = AsyncCheckpointSaver._saver_instance
    assert saver is not None, "there is no saver"
    saver.save_shm_to_storage()
    made = [p for p in folder.rglob("*.pt") if p.stat().st_size >= state.bytes]
    assert made, f"it has written no checkpoint: {[str(p) for p in folder.rglob('*')]}"
    say("on disk")
    uploader.send([made[-1]])
    say("stored")
    saver.close()  # takes its shared memory away
    os._exit(0)  # its threads wait for ever


if __name__ == "__main__":
    main()
