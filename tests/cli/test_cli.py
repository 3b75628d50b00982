"""`holdfast checkpoints` and `holdfast verify`: what a person and a script get to see, and which exit code they can rely on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from worlds import World, ref

from holdfast_api import layout
from holdfast_cli.__main__ import app
from holdfast_store.chunks import digest
from holdfast_store.file import FileBucket

JOB = ["--namespace", "ns", "--job", "job"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(FileBucket(tmp_path)).claimed(1)
    for save in (1, 2, 3):
        world.saved(1, save, [b"aaaabbbb", b"cccc" * save])
    world.store.expire(ref(1, 1), by_attempt=1, reason="retention")
    return world


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_checkpoints_are_listed_newest_first(world: World, tmp_path: Path) -> None:
    result = call("checkpoints", tmp_path.as_uri(), *JOB)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    heads = ["CHECKPOINT", "STANDING", "STEP", "CAUSE", "CREATED", "SIZE", "STORED", "RANKS", "BASE", "FINITE"]
    assert lines[0].split() == heads
    assert [line.split()[:4] for line in lines[1:]] == [
        ["1/3", "usable", "3", "periodic"],
        ["1/2", "usable", "2", "periodic"],
    ]


def test_expired_ones_are_shown_when_asked_for(world: World, tmp_path: Path) -> None:
    result = call("checkpoints", tmp_path.as_uri(), *JOB, "--all")
    assert ["1/1", "expired"] in [line.split()[:2] for line in result.stdout.splitlines()]


def test_json_is_for_scripts(world: World, tmp_path: Path) -> None:
    found = json.loads(call("checkpoints", tmp_path.as_uri(), *JOB, "-o", "json").stdout)
    assert [(c["checkpoint"], c["standing"], c["step"], c["bytes"], c["ranks"]) for c in found] == [
        ("1/3", "usable", 3, 20, 2),
        ("1/2", "usable", 2, 16, 2),
    ]


def test_it_is_shown_which_are_finite_and_they_are_not_counted_with_those_that_are(tmp_path: Path) -> None:
    world = World(FileBucket(tmp_path)).claimed(1)
    for save, finite in enumerate((True, None, False, False, False), 1):
        world.told(1, save, finite)
    lines = call("checkpoints", tmp_path.as_uri(), *JOB).stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["NO", "NO", "NO", "unknown", "yes"]
    found = json.loads(call("checkpoints", tmp_path.as_uri(), *JOB, "-o", "json").stdout)
    assert [(c["finite"], c["notFinite"]) for c in found][:1] == [(False, ["model.w"])]
    told = json.loads(call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "--keep-last", "1", "-o", "json").stdout)
    fates = [(c["checkpoint"], c["deleted"]) for c in told]
    assert fates == [("1/1", False), ("1/2", False), ("1/4", False), ("1/5", False), ("1/3", True)]
    assert "known to be finite" in told[0]["why"]


def test_several_jobs_of_one_name_are_told_apart_by_uid(world: World, tmp_path: Path) -> None:
    World(FileBucket(tmp_path), "uid-2").claimed(1).saved(1, 1)
    assert "UID" in call("checkpoints", tmp_path.as_uri(), *JOB).stdout
    refused = call("verify", tmp_path.as_uri(), *JOB)
    assert refused.exit_code == 2
    assert "--uid" in refused.stderr
    assert "uid-1, uid-2" in refused.stderr
    assert call("verify", tmp_path.as_uri(), *JOB, "--uid", "uid-2").exit_code == 0


def test_a_checkpoint_that_is_intact_verifies(world: World, tmp_path: Path) -> None:
    result = call("verify", tmp_path.as_uri(), *JOB)
    assert result.exit_code == 0, result.output
    assert "checkpoint 1/3: intact; 3 chunks, 12 B" in result.stdout


def test_one_flipped_bit_is_found_and_named_with_exit_code_one(world: World, tmp_path: Path) -> None:
    path = tmp_path / world.store.prefix / layout.chunk_key(ref(1, 2), digest(b"bbbb"))
    path.write_bytes(b"bbbc")
    result = call("verify", tmp_path.as_uri(), *JOB, "--checkpoint", "1/2")
    assert result.exit_code == 1
    assert digest(b"bbbb") in result.stdout
    assert "DAMAGED" in result.stdout
    plain = json.loads(call("verify", tmp_path.as_uri(), *JOB, "-c", "1/2", "-o", "json").stdout)
    assert (plain["checkpoint"], plain["intact"], len(plain["problems"])) == ("1/2", False, 1)
    assert call("verify", tmp_path.as_uri(), *JOB, "-c", "1/3").exit_code == 0


def test_a_damaged_commit_record_is_listed_as_damaged(world: World, tmp_path: Path) -> None:
    (tmp_path / world.store.prefix / layout.commit_key(ref(1, 2))).write_bytes(b"{}")
    result = call("checkpoints", tmp_path.as_uri(), *JOB)
    assert ["1/2", "damaged"] in [line.split()[:2] for line in result.stdout.splitlines()]
    assert "digest" in result.stderr
    assert call("verify", tmp_path.as_uri(), *JOB, "-c", "1/2").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["checkpoints", "{dir}/none", *JOB], 3, "mount the volume"),
        (["checkpoints", "ftp://x", *JOB], 3, "s3://bucket/prefix"),
        (["checkpoints", "{dir}", "--namespace", "ns", "--job", "other"], 1, "check URI, --namespace and --job"),
        (["checkpoints", "{dir}", "--namespace", "../ns", "--job", "job"], 2, "not a Kubernetes name"),
        (["checkpoints", "{dir}", "--namespace", "ns", "--job", "job", "--uid", "../x"], 2, "not a uid"),
        (["verify", "{dir}", *JOB, "--checkpoint", "newest"], 2, "ATTEMPT/SAVE"),
        (["verify", "{dir}", *JOB, "--checkpoint", "1/1"], 1, "expired"),
        (["verify", "{dir}", *JOB, "--checkpoint", "7/1"], 1, "7"),
        (["verify", "{dir}"], 2, "Missing option"),
        (["checkpoints", "{dir}", *JOB, "-o", "yaml"], 2, "yaml"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_mistakes_get_one_clear_line_and_no_traceback(
    world: World, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    result = call(*(a.replace("{dir}", tmp_path.as_uri()) for a in arguments))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_server_that_is_away_ends_with_exit_code_three_after_the_given_patience() -> None:
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "secret-canary"}
    arguments = ["checkpoints", "s3://bucket/x", *JOB, "--endpoint", "http://127.0.0.1:1", "--retry-seconds", "0"]
    result = CliRunner(env=environment).invoke(app, arguments)
    assert result.exit_code == 3
    assert "127.0.0.1:1" in result.stderr
    assert "secret-canary" not in result.output


def test_the_program_runs_as_a_module_and_names_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("holdfast ")


def test_as_a_kubectl_plugin_it_calls_itself_so(tmp_path: Path) -> None:
    plugin = tmp_path / "kubectl-holdfast"
    plugin.write_text(f"#!{sys.executable}\nfrom holdfast_cli.__main__ import main\nmain()\n")
    plugin.chmod(0o755)
    done = subprocess.run([plugin, "--help"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert "Usage: kubectl holdfast" in done.stdout


def test_shells_are_offered_completion() -> None:
    environment = os.environ | {"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_cli"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.split() == ["verify"]


def test_a_dry_run_says_what_would_go_and_why_the_rest_stays(tmp_path: Path) -> None:
    world = World(FileBucket(tmp_path)).claimed(1)
    world.saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1)).saved(1, 3, b"dddd").saved(1, 4, b"eeee")
    before = world.stored()
    result = call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "--keep-last", "3", "-c", "1/4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["CHECKPOINT", "WOULD", "BE", "FREES", "CHUNKS", "STAY", "WHY"]
    told = {line.split()[0]: line for line in lines[1:-1]}
    assert [(name, line.split()[1]) for name, line in told.items()] == [
        ("1/2", "kept"),
        ("1/3", "kept"),
        ("1/4", "kept"),
        ("1/1", "deleted"),
    ]
    assert "one of the newest 3" in told["1/2"]
    assert "newest usable" in told["1/4"], "what is named is asked of the store"
    assert "1 (1/2)" in told["1/1"]
    assert "no rule keeps it" in told["1/1"]
    assert "nothing has been deleted" in lines[-1]
    assert world.stored() == before
    plain = json.loads(call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "-c", "1/1", "-o", "json").stdout)
    assert plain[0]["deleted"] is True
    assert plain[0]["keptChunks"][0]["because"] == "1/2"
    assert f"{world.store.prefix}{layout.chunk_key(ref(1, 1), digest(b'bbbb'))}" in plain[0]["objects"]
    assert f"{world.store.prefix}{layout.manifest_key(ref(1, 1), 0)}" in plain[0]["objects"]


def test_each_rule_can_be_tried_and_says_what_it_keeps(tmp_path: Path) -> None:
    world = World(FileBucket(tmp_path)).claimed(1)
    for save in range(1, 9):
        record = world.prepared(1, save, b"%04d" % save)
        world.store.commit(replace(record, metrics={"val_loss": abs(save - 3) + 1.0}))
    rules = ["--keep-last", "1", "--keep-best", "val_loss:2", "--keep-every-steps", "5", "--pin", "1/4"]
    result = call("expire", tmp_path.as_uri(), *JOB, "--dry-run", *rules, "-o", "json")
    assert result.exit_code == 0, result.output
    told = {c["checkpoint"]: c for c in json.loads(result.stdout)}
    assert sorted(n for n, c in told.items() if c["deleted"]) == ["1/2", "1/6"]
    assert "val_loss (1)" in told["1/3"]["why"]
    assert "pinned" in told["1/4"]["why"]
    assert "first of its 5 steps" in told["1/5"]["why"]
    less = call("expire", tmp_path.as_uri(), *JOB, "--dry-run", *rules, "--max-bytes", "1")
    assert "--max-bytes is 1 bytes" in less.stderr
    assert "1/4" in less.stderr
    odd = call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "--keep-best", "acc")
    assert "no checkpoint has that metric; they have: val_loss" in odd.stderr


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["--keep-best", "loss:0"], "METRIC[:COUNT[:highest]]"),
        (["--keep-best", "loss:2:best"], "METRIC[:COUNT[:highest]]"),
        (["--keep-best", ":2"], "METRIC[:COUNT[:highest]]"),
        (["--pin", "newest"], "--pin: 'newest' is not ATTEMPT/SAVE"),
        (["--max-bytes", "10"], "add --keep-last N"),
    ],
)
def test_a_rule_that_makes_no_sense_is_one_line(world: World, tmp_path: Path, rules: list[str], said: str) -> None:
    result = call("expire", tmp_path.as_uri(), *JOB, "--dry-run", *rules)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_nothing_is_ever_deleted_from_here(world: World, tmp_path: Path) -> None:
    before = world.stored()
    refused = call("expire", tmp_path.as_uri(), *JOB, "-c", "1/2")
    assert refused.exit_code == 2
    assert "--dry-run" in refused.stderr
    assert call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "-c", "../1").exit_code == 2
    assert call("expire", tmp_path.as_uri(), *JOB, "--dry-run", "--keep-last", "0").exit_code == 2
    nothing_named = call("expire", tmp_path.as_uri(), *JOB, "--dry-run")
    assert (nothing_named.exit_code, nothing_named.stdout) == (2, "")
    assert "--keep-last N" in nothing_named.stderr
    assert world.stored() == before


def test_a_store_that_does_not_answer_is_one_line_not_one_for_each_try() -> None:
    arguments = ["verify", "s3://bucket/prefix", *JOB, "--endpoint", "http://127.0.0.1:1", "--retry-seconds", "0.5"]
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_cli", *arguments], capture_output=True, text=True, env=os.environ | keys
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "127.0.0.1:1" in line
