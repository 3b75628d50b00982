"""Whether this machine has a GPU, asked by another process: one that has asked itself can no longer fork processes that use it."""

import subprocess
import sys

_ASK = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def name() -> str:
    """Of the first one; empty where there is none."""
    asked = subprocess.run([sys.executable, "-W", "ignore", "-c", _ASK], capture_output=True, text=True, check=False)
    return asked.stdout.strip().splitlines()[-1] if asked.returncode == 0 and asked.stdout.strip() else ""
