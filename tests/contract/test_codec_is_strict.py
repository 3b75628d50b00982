"""B10: JSON is strict and versioned; lengths are bounded before anything is parsed; bad input ends in a contract error and nothing else."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_types import rank_types, sample, schema_types

from holdfast_api import codec, ranks
from holdfast_api.errors import ContractError, Malformed, TooLarge
from holdfast_api.layout import MAX_NUMBER, CheckpointRef
from holdfast_api.manifest import Claim, RankManifest, TensorEntry

REFS = st.builds(CheckpointRef, st.integers(1, MAX_NUMBER), st.integers(1, MAX_NUMBER))
st.register_type_strategy(CheckpointRef, REFS)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(datetime, st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))


def values(cls: Any) -> st.SearchStrategy[Any]:
    return st.from_type(cls).map(_with_schema)


def _with_schema(value: Any) -> Any:
    return dataclasses.replace(value, schema=type(value).SCHEMA) if hasattr(value, "SCHEMA") else value


@pytest.mark.parametrize("cls", schema_types(), ids=lambda c: c.__name__)
def test_every_message_survives_the_wire(cls: Any) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(values(cls))
    def survives(value: Any) -> None:
        data = codec.to_json(value)
        assert codec.from_json(cls, data) == value
        assert (
            codec.to_json(codec.from_json(cls, data)) == data
        )  # equal values give equal bytes: digests of them are stable

    survives()


def test_text_with_half_a_character_survives_and_no_message_is_lost_for_it() -> None:
    """The name of a file that is no UTF-8, as Python gives it: in a metric's name, a tensor's, an error message."""
    half = "/data/\udcff.bin"
    manifest = dataclasses.replace(sample(RankManifest), tensors=(TensorEntry(half, "float32", (1,), 0, 4),), loose=())
    data = codec.to_json(manifest)
    assert data.decode().count("\\udcff") == 1
    assert codec.from_json(RankManifest, data) == manifest
    assert codec.to_json(codec.from_json(RankManifest, data)) == data
    passed = ranks.Passed(1, 0.5, 0, {half: 1.0})
    assert ranks.from_line(ranks.to_line(passed)) == passed
    assert codec.from_plain(ranks.Passed, codec.parse(codec.to_json(passed))) == passed


@pytest.mark.parametrize("cls", rank_types(), ids=lambda c: c.__name__)
def test_every_line_of_the_rank_socket_survives(cls: Any) -> None:
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.from_type(cls))
    def survives(value: Any) -> None:
        line = ranks.to_line(value)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert ranks.from_line(line) == value

    survives()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_contract_error(data: bytes) -> None:
    with pytest.raises(ContractError):
        codec.from_json(Claim, data)
    with pytest.raises(ContractError):
        ranks.from_line(data)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(schema_types()), st.data())
def test_any_field_replaced_by_any_json_is_read_or_refused_but_never_crashes(cls: Any, data: st.DataObject) -> None:
    plain = codec.to_plain(sample(cls))
    name = data.draw(st.sampled_from(sorted(plain)))
    changed = plain | {name: data.draw(JSONS)}
    try:
        value = codec.from_json(cls, json.dumps(changed).encode())
    except ContractError:
        return
    assert isinstance(value, cls)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a":1,"a":2}', "duplicate key"),
        ('{"a":NaN}', "not JSON"),
        ('{"a":Infinity}', "not JSON"),
        ("{", "not strict JSON"),
        ("", "not strict JSON"),
        ('{"a":1}trailing', "not strict JSON"),
    ],
)
def test_loose_json_is_refused(text: str, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        codec.parse(text.encode())


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(Malformed):
        codec.parse(b'{"a":"\xff"}')


def test_length_is_bounded_before_parsing() -> None:
    with pytest.raises(TooLarge, match="11 bytes"):
        codec.parse(b"not JSON at"[:11], max_bytes=10)


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000])
def test_deep_nesting_is_refused_and_not_recursed_into(deep: str) -> None:
    with pytest.raises(Malformed):
        codec.parse(deep.encode())


@pytest.mark.parametrize("value", [True, "1", 1.0, None, [1], {}])
def test_an_integer_is_an_integer_and_nothing_that_looks_like_one(value: Any) -> None:
    plain = codec.to_plain(sample(RankManifest)) | {"boundary": value}
    with pytest.raises(Malformed, match=r"RankManifest\.boundary"):
        codec.from_plain(RankManifest, plain)


def test_a_time_without_a_zone_is_refused_both_ways() -> None:
    with pytest.raises(ValueError):
        codec.format_time(datetime(2026, 1, 1))
    plain = codec.to_plain(sample(Claim)) | {"created_at": "2026-01-01T00:00:00"}
    with pytest.raises(Malformed, match="no time zone"):
        codec.from_plain(Claim, plain)


def test_a_checkpoint_number_out_of_range_is_refused_by_field() -> None:
    plain = codec.to_plain(sample(RankManifest))
    plain["chunks"][0]["at"]["attempt"] = 0
    with pytest.raises(Malformed, match=r"chunks\[0\]\.at"):
        codec.from_plain(RankManifest, plain)


def test_an_unknown_line_on_the_socket_is_refused() -> None:
    for line in (b'{"type":"Nobody"}\n', b'{"type":["Hello"]}\n', b"[]\n", b"{}\n"):
        with pytest.raises(ContractError):
            ranks.from_line(line)
