"""Everything an agent knows when it starts, checked once: in a pod from the environment and mounted files, on a laptop from the command line (A10)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.tiers import LOCAL_VOLUMES
from holdfast_api import codec, layout, names
from holdfast_api.config import AgentConfig
from holdfast_api.errors import BadName, ContractError
from holdfast_api.manifest import MAX_CHUNK_BYTES
from holdfast_api.signing import Role

ENV_LISTEN = "HOLDFAST_AGENT_LISTEN"
"""`host:port` instead of all addresses and the agent's port: for agents that share one network namespace."""
ENV_KEYS_DIR = "HOLDFAST_KEYS_DIR"
ENV_TOKEN_PATH = "HOLDFAST_TOKEN_PATH"  # noqa: S105  the name of a variable
ENV_TERMINATION_PATH = "HOLDFAST_TERMINATION_PATH"
SETTINGS_OF_RANKS = (names.ENV_MID_STEP, names.ENV_SIDE_STREAM, names.ENV_RUN_ID, names.ENV_GIT_COMMIT)
"""Of a container's HOLDFAST_ variables only these reach the training processes (H3), beside those that the agent sets itself."""
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """Fixed for the life of the process."""

    config: AgentConfig
    command: tuple[str, ...]
    pod_name: str
    pod_uid: str
    pod_ip: str
    node: str
    listen_host: str
    listen_port: int
    """0: any free one (laptop)."""
    keys: Mapping[Role, bytes]
    token_path: Path
    termination_path: Path | None
    rendezvous_port: int = 0
    """0: that of the attempt (names.rendezvous_port)."""
    laptop: bool = False


def from_environment(environ: Mapping[str, str], command: tuple[str, ...]) -> Settings:
    """In a pod. Raises ConfigurationWrong."""
    config = config_from(environ)
    host, port = _listen(environ.get(ENV_LISTEN, ""))
    termination = Path(environ.get(ENV_TERMINATION_PATH, names.TERMINATION_PATH))
    return Settings(
        config=config,
        command=command,
        pod_name=environ.get(names.ENV_POD_NAME, ""),
        pod_uid=_required(environ, names.ENV_POD_UID),
        pod_ip=environ.get(names.ENV_POD_IP, ""),
        node=environ.get(names.ENV_NODE, ""),
        listen_host=host,
        listen_port=port,
        keys=read_keys(Path(environ.get(ENV_KEYS_DIR, names.KEYS_DIR))),
        token_path=Path(environ.get(ENV_TOKEN_PATH, names.TOKEN_PATH)),
        termination_path=termination if termination.parent.is_dir() else None,
    )


def config_from(environ: Mapping[str, str]) -> AgentConfig:
    """What the operator has set. Raises ConfigurationWrong."""
    text = environ.get(names.ENV_CONFIG)
    if not text:
        raise ConfigurationWrong(
            f"{names.ENV_CONFIG} is not set: the operator sets it in a TrainingJob's pods; "
            "outside Kubernetes use `holdfast-agent run --local DIR -- COMMAND`"
        )
    try:
        config = codec.from_json(AgentConfig, text.encode())
    except ContractError as e:
        raise ConfigurationWrong(f"{names.ENV_CONFIG}: {e}") from e
    check(config)
    return config


def check(config: AgentConfig) -> None:
    """Values that no later step would refuse in words. Raises ConfigurationWrong."""
    if not 0 <= config.worker < config.workers:
        raise ConfigurationWrong(f"worker {config.worker} is not one of {config.workers} workers")
    if not 1 <= config.processes_per_worker <= 1024:
        raise ConfigurationWrong(f"processes_per_worker is {config.processes_per_worker}; 1 to 1024 are possible")
    if not PAGE_BYTES <= config.chunk_bytes <= MAX_CHUNK_BYTES or config.chunk_bytes % PAGE_BYTES:
        raise ConfigurationWrong(f"chunk_bytes is {config.chunk_bytes}; multiples of 4 KiB up to 1 GiB are possible")
    if config.slots not in (1, 2):
        raise ConfigurationWrong(f"slots is {config.slots}; 1 and 2 are possible")
    for name in (
        "every_steps",
        "every_seconds",
        "grace_seconds",
        "sigterm_floor_seconds",
        "background_bytes_per_second",
        "scrub_bytes_per_second",
        "scrub_every_seconds",
    ):
        if getattr(config, name) < 0:
            raise ConfigurationWrong(f"{name} is {getattr(config, name)}; it cannot be negative")
    if config.notice_seconds < 1:
        raise ConfigurationWrong(f"notice_seconds is {config.notice_seconds}; it must be at least 1")
    if config.every_auto and (config.every_steps or config.every_seconds):
        raise ConfigurationWrong(
            f"every_auto chooses the interval, so every_steps ({config.every_steps}) and every_seconds ({config.every_seconds}) must be 0"
        )
    if config.every_auto and (config.max_loss_seconds < 1 or not 0 < config.max_overhead_percent <= 100):
        raise ConfigurationWrong(
            f"max_loss_seconds is {config.max_loss_seconds} and max_overhead_percent {config.max_overhead_percent}; "
            "the first must be at least 1, the second from 1 to 100"
        )
    _check_places(config)


def _check_places(config: AgentConfig) -> None:
    try:
        layout.segment(config.namespace)
        layout.segment(config.job)
        layout.checked_uid(config.job_uid)
    except BadName as e:
        raise ConfigurationWrong(f"namespace, job and job_uid must be those of the TrainingJob: {e}") from None
    for name in ("memory_dir", "local_dir"):
        folder = getattr(config, name)
        if not Path(folder).is_absolute() and (folder or name == "memory_dir"):
            raise ConfigurationWrong(f"{name} is {folder!r}; write an absolute path")
    if config.local_volume not in LOCAL_VOLUMES:
        raise ConfigurationWrong(f"local_volume is {config.local_volume!r}; write one of {', '.join(LOCAL_VOLUMES)}")


def read_keys(folder: Path) -> dict[Role, bytes]:
    """One file per role, 32 bytes in hex. The content never appears in a message."""
    keys = {}
    for role in Role:
        path = folder / role.value
        try:
            key = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as e:
            raise ConfigurationWrong(f"{path} cannot be read as a key in hex ({type(e).__name__})") from None
        if len(key) < 32:
            raise ConfigurationWrong(f"{path} holds {len(key)} bytes; 32 are needed")
        keys[role] = key
    return keys


def environment_of_ranks(environ: Mapping[str, str]) -> dict[str, str]:
    """What training processes inherit: everything but the agent's own configuration."""
    return {k: v for k, v in environ.items() if not k.startswith("HOLDFAST_") or k in SETTINGS_OF_RANKS}


def _listen(text: str) -> tuple[str, int]:
    if not text:
        return "", names.AGENT_PORT
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigurationWrong(f"{ENV_LISTEN} is {text!r}; write HOST:PORT")
    return host, int(port)


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise ConfigurationWrong(f"{name} is not set; the operator sets it from the pod's own metadata")
    return value


def process_environment() -> Mapping[str, str]:
    """The one place where the process's environment is read."""
    return os.environ
