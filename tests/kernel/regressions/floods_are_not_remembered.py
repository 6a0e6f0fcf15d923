"""A remembered flood outlived the flooding: the memory of decisions asks generations, and none tells of how groups
spread (found by fuzzing, seed 20004)."""
# ruff: noqa: E501

from dataclasses import replace
from ipaddress import IPv4Address

from engine_steps import Send, Update
from engine_storms import Case

from vfp.model import EngineState, Flooding, Rate, Remote, Space
from vfp.reference import Hook

FLOODED = Space(200, entries=((IPv4Address("10.1.0.2"), Remote(IPv4Address("172.31.0.3"), 200, bytes.fromhex("020000000005"))),),
                flooding=Flooding(Rate(1 << 31, 1), vni=200))
SEND = Send(hook=Hook.OVERLAY_IN, number=200, frame=bytes.fromhex("ffffffffffff02000000000508004528004500030000ff06a6860a0100020a0100fe4e834e51000000010000000250142000d7a20000bc2638ec3d4fb728e3f7c78fbbae378d051ec6d39a8f09e5536ef313c7"), vtep=IPv4Address("172.31.0.3"))

CASE = Case(
    state=EngineState(spaces=(FLOODED,)),
    events=(SEND, SEND, SEND, Update(EngineState(spaces=(replace(FLOODED, flooding=None),))), SEND),
)
