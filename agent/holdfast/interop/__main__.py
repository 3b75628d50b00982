"""`python -m holdfast.interop`: one request as JSON on standard input, JSON lines on standard output.

    {"progress": [done, total]}      any number
    {"done": {...}}                  the answer, last
    {"error": "one sentence"}        instead of it

Knows no store and needs no network.
"""

import ctypes
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.interop import imported, outputs
from holdfast.interop.errors import Refused

PR_SET_PDEATHSIG = 1


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def tell(done: int, total: int) -> None:
    say({"progress": [done, total]})


VERBS: dict[str, Callable[[dict[str, Any], Callable[[int, int], None]], dict[str, Any]]] = {
    "export": outputs.write,
    "import": imported.convert,
}


def main() -> int:
    if (
        sys.platform == "linux"
    ):  # who asked is killed: nobody is left to read the answer, or to take away what is half written
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = json.load(sys.stdin)
    try:
        say({"done": VERBS[request["verb"]](request, tell)})
    except (Refused, HoldfastError) as e:
        say({"error": str(e)})
    except OSError as e:
        say({"error": f"{Path(e.filename).name if e.filename else 'the file'}: {e.strerror or e}"})
    except MemoryError:
        say({"error": "there is not enough memory to hold the state as a whole"})
    except Exception as e:
        # A stranger's file can break any assumption; a person gets one line all the same.
        say({"error": f"the files could not be converted: {type(e).__name__}: {e}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
