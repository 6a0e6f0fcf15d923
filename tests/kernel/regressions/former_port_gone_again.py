"""A flow of a port whose id another one had since is nobody's, also when that one is gone, too (seed 20000)."""
# frame: uplink_in 1  0200000000040200000000fe08004500001b0000000040c313e9cb007102c63364017061796c6f6164
#   reference: stack NONE 0 0200000000040200000000fe08004500001b0000000040c313e9cb007102c63364017061796c6f6164
#   BPF:       drop UNKNOWN_PORT 0
# ruff: noqa: E501, I001

from ipaddress import IPv4Address
from engine_steps import Send, Update
from engine_storms import Case
from vfp.model import EngineState, Group, Layer, Match, Pool, Port, PortRange, Rule, ToUplink, TranslateSource, Uplink
from vfp.reference import Hook

CASE = Case(
    state=EngineState(),
    events=(
        Update(state=EngineState(ports=(Port(id=4, name='p4', ifindex=14, mac=bytes.fromhex("020000000004"), gateway_mac=bytes.fromhex("0200000000fe"), layers=(Layer(name='nat', groups_out=(Group(name='out', rules=(Rule(priority=1, match=Match(), action=TranslateSource(pool=1), name='translate'),)),)), Layer(name='vnet', groups_out=(Group(name='vnet', rules=(Rule(priority=4, match=Match(), action=ToUplink(uplink=1), name='out'),)),)))),), pools=(Pool(id=1, uplink=2, addresses=(IPv4Address("198.51.100.1"),), ports=PortRange(low=20000, high=20099)),), uplinks=(Uplink(id=1, name='up1', ifindex=51),))),
        Send(hook=Hook.PORT_OUT, number=4, frame=bytes.fromhex("0200000000fe02000000000408004500002c0002000040c334060a010004cb007102000000000000000000000000000000000000000000000000")),
        Update(state=EngineState()),
        Update(state=EngineState(ports=(Port(id=4, name='p4', ifindex=14, mac=bytes.fromhex("020000000004"), gateway_mac=bytes.fromhex("0200000000fe")),))),
        Update(state=EngineState()),
        Send(hook=Hook.UPLINK_IN, number=1, frame=bytes.fromhex("0200000000040200000000fe08004500001b0000000040c313e9cb007102c63364017061796c6f6164")),
    ),
)
