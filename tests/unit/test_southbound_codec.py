"""Messages survive the wire unchanged; whatever is not exactly a message is refused by name, field and find."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from southbound import codec
from southbound.codec import decode, encode
from southbound.errors import ProtocolError
from southbound.messages import (
    GOALS,
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Delta,
    FullSync,
    Hello,
    HostFacts,
    HostGoal,
    Join,
    Message,
    ObjectStatus,
    Ping,
    PortGoal,
    Query,
    RemotesGoal,
    Reply,
    Request,
    Welcome,
)

MESSAGES = get_args(Message)
NUMBERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON_LIKE = st.recursive(st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
                         max_leaves=8)
st.register_type_strategy(int, NUMBERS)
st.register_type_strategy(str, TEXTS)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def instances(cls: type[Any]) -> st.SearchStrategy[Any]:
    fields: dict[str, Any] = {}
    if cls is ObjectStatus:
        fields["details"] = st.dictionaries(TEXTS, JSON_LIKE, max_size=3)
    elif cls is Query or cls is Request:
        fields["args"] = st.dictionaries(TEXTS, JSON_LIKE, max_size=3)
    elif cls is Answer or cls is Reply:
        fields["data"] = JSON_LIKE
        if cls is Reply:
            fields["problems"] = st.lists(st.dictionaries(TEXTS, JSON_LIKE, max_size=3), max_size=2).map(tuple)
    elif cls is Ack:
        fields["objects"] = st.lists(instances(ObjectStatus), max_size=3).map(tuple)
    if any(field.name == "version" for field in dataclasses.fields(cls)):
        fields["version"] = st.just(PROTOCOL_VERSION)
    return st.builds(cls, **fields, **{field.name: st.from_type(_hints(cls)[field.name])
                                       for field in dataclasses.fields(cls) if field.name not in fields})


def _hints(cls: type[Any]) -> dict[str, Any]:
    from typing import get_type_hints
    return get_type_hints(cls)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_round_trips(cls: type[Any]) -> None:
    @given(instances(cls))
    def check(message: Any) -> None:
        assert decode(encode(message)) == message

    check()


@pytest.mark.parametrize("cls", GOALS, ids=lambda cls: cls.__name__)
def test_every_goal_round_trips_in_full_sync_and_delta(cls: type[Any]) -> None:
    @given(st.lists(instances(cls), max_size=3).map(tuple))
    def check(goals: Any) -> None:
        for message in (FullSync(7, goals), Delta(6, 7, goals, (("port", "x"),))):
            assert decode(encode(message)) == message

    check()


@given(st.binary(max_size=200) | JSON_LIKE.map(msgpack.packb))
def test_anything_else_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(payload)


HELLO: dict[str, Any] = msgpack.unpackb(encode(Hello(PROTOCOL_VERSION, "h1", "0.1", "b", 3, HostFacts())))
SYNC: dict[str, Any] = msgpack.unpackb(encode(FullSync(1, (
    HostGoal("self"), RemotesGoal("n/h2/1", "n", "h2", ("172.31.0.2",), ("a", "b"), bytes(12), bytes(8), b"")))))


def changed(message: dict[str, Any], **fields: Any) -> bytes:
    return bytes(msgpack.packb({**message, **fields}))


def without(message: dict[str, Any], field: str) -> bytes:
    return bytes(msgpack.packb({key: value for key, value in message.items() if key != field}))


@pytest.mark.parametrize(("payload", "message", "field", "text"), [
    (b"", "frame", "", "not an acceptable msgpack"),
    (b"\x93\x01\x02\x03", "frame", "", "expected a map"),
    (encode(Ping(1)) + b"\x00", "frame", "", "not an acceptable msgpack"),
    (encode(Ping(1))[:-1], "frame", "", "not an acceptable msgpack"),
    (b"\x81" + b"\x91" * 2000, "frame", "", "not an acceptable msgpack"),
    (b"\x81\x01\x02", "frame", "", "not an acceptable msgpack"),            # key is no text
    (msgpack.packb({"t": "\ud800"}, unicode_errors="surrogatepass"), "frame", "", "not an acceptable msgpack"),
    (msgpack.packb({"t": "Ping", "sequence": msgpack.ExtType(1, b"x")}), "frame", "", "not an acceptable"),
    (msgpack.packb({"t": "Nonsense"}), "frame", "t", "found 'Nonsense'"),
    (msgpack.packb({"t": ["Ping"], "sequence": 1}), "frame", "t", "list of 1"),
    (msgpack.packb({"sequence": 1}), "frame", "t", "found None"),
    (without(HELLO, "boot"), "Hello", "", "'boot' is missing"),
    (without(HELLO, "version"), "Hello", "", "'version' is missing"),
    (changed(HELLO, surplus=1), "Hello", "", "unknown field; found 'surplus'"),
    (changed(HELLO, host=5), "Hello", "host", "expected text; found 5"),
    (changed(HELLO, host=b"h1"), "Hello", "host", "expected text; found b'h1'"),
    (changed(HELLO, applied_revision=True), "Hello", "applied_revision", "expected an integer; found True"),
    (changed(HELLO, version=4.0), "Hello", "version", "expected an integer"),
    (changed(HELLO, version=5, new_field=1), "Hello", "version", "speaks protocol version 4"),
    (changed(HELLO, facts=None), "Hello", "facts", "expected a map"),
    (changed(HELLO, facts={**HELLO["facts"], "addresses": [["eth0"]]}), "Hello", "facts.addresses[0]",
     "expected an array of 2"),
    (changed(HELLO, facts={**HELLO["facts"], "addresses": [["eth0", 1]]}), "Hello", "facts.addresses[0][1]",
     "expected text; found 1"),
    (changed(SYNC, goals=[{**SYNC["goals"][0], "kind": "gate"}]), "FullSync", "goals[0]", "expected 'kind'"),
    (changed(SYNC, goals=[{**SYNC["goals"][0], "kind": []}]), "FullSync", "goals[0]", "expected 'kind'"),
    (changed(SYNC, goals=[SYNC["goals"][1], 1]), "FullSync", "goals[1]", "expected a map"),
    (changed(SYNC, goals=[{**SYNC["goals"][1], "host": 1}]), "FullSync", "goals[0].host", "expected text"),
    (changed(SYNC, goals=[{**SYNC["goals"][1], "names": ["a", 1]}]), "FullSync", "goals[0].names[1]", "expected text"),
    (changed(SYNC, goals=[{**SYNC["goals"][1], "macs": "a"}]), "FullSync", "goals[0].macs", "expected bytes"),
    (changed(SYNC, goals={"a": 1}), "FullSync", "goals", "expected an array"),
    (msgpack.packb({"t": "Welcome", "version": 4, "store": "s", "keepalive_s": float("nan")}), "Welcome",
     "keepalive_s", "finite"),
    (msgpack.packb({"t": "Query", "id": 1, "what": "x", "args": {"a": b"raw"}}), "Query", "args.a", "JSON-like"),
], ids=str)
def test_refusal_names_message_field_and_find(payload: bytes, message: str, field: str, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(payload)
    assert (caught.value.message, caught.value.field) == (message, field)
    assert text in str(caught.value)


def test_a_literal_takes_only_its_choices() -> None:
    port = PortGoal("u", "n", "t", "net", "10.1.0.5/24", "m", "ns", "eth0")
    raw = msgpack.unpackb(encode(FullSync(1, (port,))))
    raw["goals"][0]["default_in"] = "maybe"
    with pytest.raises(ProtocolError, match=r"goals\[0\]\.default_in: expected 'allow' or 'deny'; found 'maybe'"):
        decode(msgpack.packb(raw))


def test_json_like_data_may_nest_to_the_bound_and_no_deeper() -> None:
    def nested(depth: int) -> Any:
        data: Any = 1
        for _ in range(depth):
            data = [data]
        return data

    fits = Answer(1, "", nested(codec.MAX_DEPTH))
    assert decode(encode(fits)) == fits
    with pytest.raises(ProtocolError, match="nested deeper"):
        encode(Answer(1, "", nested(codec.MAX_DEPTH + 1)))
    with pytest.raises(ProtocolError, match="nested deeper"):
        decode(msgpack.packb({"t": "Answer", "id": 1, "error": "", "data": nested(codec.MAX_DEPTH + 1)}))


def test_many_small_containers_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_CONTAINERS", 1000)
    with pytest.raises(ProtocolError, match="more than 1000 arrays and maps"):
        decode(msgpack.packb({"t": "Answer", "id": 1, "error": "", "data": [[]] * 1001}))


def test_long_text_is_refused() -> None:
    with pytest.raises(ProtocolError, match="exceeds"):
        decode(msgpack.packb({"t": "Resync", "reason": "x" * (codec.MAX_TEXT_BYTES + 1)}))


@pytest.mark.parametrize(("message", "text"), [
    (Ping("one"), "Ping.sequence: expected an integer; found 'one'"),          # type: ignore[arg-type]
    (Ping(2**64), "cannot hold"),
    (Ack(1, [ObjectStatus("port", "x")]), "Ack.objects: expected a tuple"),    # type: ignore[arg-type]
    (FullSync(1, ("x",)), r"FullSync.goals\[0\]: expected a goal-state"),      # type: ignore[arg-type]
    (Answer(1, "", {"a": {1, 2}}), "Answer.data.a: expected JSON-like data"),
    (Answer(1, "", float("inf")), "Answer.data: expected a finite number"),
    (Answer(1, "", "\ud800"), "cannot hold"),
    (Welcome(PROTOCOL_VERSION, "s", "5"), "Welcome.keepalive_s: expected a finite number"),   # type: ignore[arg-type]
    (HostGoal("self"), "not a message"),
], ids=str)
def test_our_own_mistakes_do_not_leave_the_house(message: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        encode(message)


def test_tuples_in_json_like_data_travel_as_arrays_and_whole_numbers_as_seconds() -> None:
    assert decode(encode(Answer(1, "", {"ports": (1, 2)}))) == Answer(1, "", {"ports": [1, 2]})
    assert decode(encode(Welcome(PROTOCOL_VERSION, "s", 5))) == Welcome(PROTOCOL_VERSION, "s", 5.0)


def test_a_token_is_not_shown_in_errors() -> None:
    raw = msgpack.unpackb(encode(Join(PROTOCOL_VERSION, "h1", "sluice1.secret.fp", b"csr")))
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb({**raw, "host": 1}))
    assert "secret" not in str(caught.value)
