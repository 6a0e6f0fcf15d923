"""No answer goes to a port that is gone (seed 40000)."""
# frame: port_out 1  02000000000202000000000186dd600000000013844020010db800000000000000000a01000520010db800000000000000
#   reference: drop REJECTED 1 02000000000102000000000286dd6000000000433a4020010db800000000000000000a01000220010db80000
#   BPF:       drop REJECTED -10 02000000000102000000000286dd6000000000433a4020010db800000000000000000a01000220010db800
# ruff: noqa: E501, I001

from ipaddress import IPv6Address
from engine_steps import Send, Update
from engine_storms import Case
from vfp.model import EngineState, Forward, Group, Layer, LocalPort, Match, Port, Reject, Rule, Space
from vfp.reference import Hook

CASE = Case(
    state=EngineState(),
    events=(
        Update(state=EngineState(ports=(Port(id=1, name='p1', ifindex=11, mac=bytes.fromhex("020000000001"), gateway_mac=bytes.fromhex("0200000000fe")), Port(id=2, name='p2', ifindex=12, mac=bytes.fromhex("020000000002"), gateway_mac=bytes.fromhex("0200000000fe"), layers=(Layer(name='vnet', groups_out=(Group(name='vnet', rules=(Rule(priority=3, match=Match(), action=Forward(space=200), name='forward 6'),)),)),))), spaces=(Space(id=200, entries=((IPv6Address("2001:db8::a01:5"), LocalPort(port=1, mac=bytes.fromhex("020000000001"))),)),))),
        Send(hook=Hook.PORT_OUT, number=2, frame=bytes.fromhex("02000000000602000000000286dd60000000002484ff20010db800000000000000000a01000220010db800000000000000000a01000581f400360000000000000000000000000000000000000000000000000000000000000000")),
        Update(state=EngineState(ports=(Port(id=2, name='p2', ifindex=12, mac=bytes.fromhex("020000000002"), gateway_mac=bytes.fromhex("0200000000fe"), layers=(Layer(name='x1', groups_out=(Group(name='ask', rules=(Rule(priority=0, match=Match(), action=Reject(), name='out'),)),)),)),))),
        Send(hook=Hook.PORT_OUT, number=1, frame=bytes.fromhex("02000000000202000000000186dd600000000013844020010db800000000000000000a01000520010db800000000000000000a010002003681f400000000000000007061796c6f6164")),
    ),
)
