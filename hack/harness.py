"""`python -m hack.harness up|down`: the cluster of the cluster tests, of whichever kind this machine has.

`up` prints, as one line of JSON, the environment variables that tell pytest where it is; `down` ends it, or, where the cluster was there already, only
what runs beside it on this machine.
"""

import json
import sys

from hack import venv
from hack.cluster import api
from hack.cluster.programs import toolchain


def up() -> None:
    tools = toolchain()
    cluster = api.ensure_cluster(
        nodes=2, grace=12, images=True
    )  # last: until it is up, being stopped takes it down again
    found = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "HOLDFAST_CLUSTER_STATE": str(cluster.state),
        "HOLDFAST_TOOLCHAIN": str(tools),
    }
    print(json.dumps(found))


COMMANDS = {"up": up, "down": api.down}


def main() -> None:
    if sys.argv[1:] not in (["up"], ["down"]):
        sys.exit(__doc__)
    venv.said_in_one_line(COMMANDS[sys.argv[1]])


if __name__ == "__main__":
    main()
