"""One host whose rules reject, mark, count, tell and copy; answers commands on standard input.

Run in the host's namespace by `test_engine_asks.py`: `pa`, `pb` and `pm` lead to endpoints, `up0` to the world, `vx0`
is a VXLAN device. Prints `ready` when packets may come, then one line of JSON for each command: `open` and `reject`
change the policy, `drops`, `meters` and `logs` look inside.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vfp.datapath.engine import Datapath, Hook, Limits
from vfp.datapath.records import LogEvent
from vfp.model import (
    Action,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    Group,
    HostStack,
    Layer,
    LocalPort,
    Location,
    Log,
    Mapping,
    Mark,
    Match,
    Meter,
    Mirror,
    Port,
    PortRange,
    Reject,
    Remote,
    Rule,
    Space,
    Untranslate,
    Uplink,
)
from vswitch.switch import Switch

A = {4: "10.7.0.2", 6: "fd00::2"}
B = {4: "10.7.0.3", 6: "fd00::3"}
FAR = {4: "10.7.0.9", 6: "fd00::9"}         # behind the tunnel
HOST = {4: "10.7.0.1", 6: "fd00::1"}
UNDERLAY = {"host": "198.51.100.1", "world": "198.51.100.7"}
MACS = {"a": "02:00:00:00:00:02", "b": "02:00:00:00:00:03", "m": "02:00:00:00:00:04", "far": "02:00:00:00:00:09",
        "host": "02:00:00:00:00:01"}

VNI = 100
BY_SENDER, BY_RECEIVER, FROM_OUTSIDE = 7001, 7002, 7003
MARKED, METERED, MIRRORED, LOGGED, SOMETIMES = 7004, 7005, 7006, 7007, 7008
SAMPLED, SEEN = 7010, 7011
MAPPED = 8082
DSCP, METER, EVERY = 46, 5, 4


def _to(number: int, action: Action) -> Rule:
    return Rule(number, Match(dst_ports=PortRange(number, number)), action, f"to {number}")


def _layer(name: str, out: tuple[Rule, ...], in_: tuple[Rule, ...] = (), *, open: bool = True) -> Layer:
    return Layer(name, (Group(name, out),), (Group(name, in_),), Allow(), Allow() if open else Deny())


def _mac(name: str) -> bytes:
    return bytes.fromhex(MACS[name].replace(":", ""))


def _port(number: int, name: str, *layers: Layer) -> Port:
    vnet = _layer("vnet", (Rule(1, Match(ethertype=0x0806), AnswerArp(VNI)), Rule(2, Match(), Forward(VNI))),
                  (Rule(1, Match(), Untranslate()),))
    return Port(number, name, socket.if_nametoindex(f"p{name}"), _mac(name), _mac("host"), (*layers, vnet))


def state(sometimes: Action) -> EngineState:
    """The engine's state; `sometimes` is what becomes of connections to that port."""
    asks = _layer("asks", (
        _to(BY_SENDER, Reject()), _to(MARKED, Mark(DSCP)), _to(METERED, Meter(METER)), _to(MIRRORED, Mirror(3)),
        _to(LOGGED, Log()), _to(SAMPLED, Log(EVERY)), _to(SOMETIMES, sometimes),
        # What the engine answers in an endpoint's name, the endpoint could not say itself.
        Rule(1, Match(src_ports=PortRange(FROM_OUTSIDE, FROM_OUTSIDE)), Deny()), Rule(2, Match(protocol=1), Deny()),
        Rule(3, Match(protocol=58, icmp_type=1), Deny()),
    ), (_to(FROM_OUTSIDE, Reject()), _to(SEEN, Mirror(3))))
    rejects = _layer("asks", (), (_to(BY_RECEIVER, Reject()),))
    closed = _layer("closed", (), open=False)
    places: list[tuple[str, Location]] = [
        *((address, LocalPort(1, _mac("a"))) for address in A.values()),
        *((address, LocalPort(2, _mac("b"))) for address in B.values()),
        *((address, Remote(ip_address(UNDERLAY["world"]), VNI, _mac("far"))) for address in FAR.values()),
        *((address, HostStack(_mac("host"))) for address in HOST.values()),
    ]
    return EngineState(
        ports=(_port(1, "a", asks), _port(2, "b", rejects), _port(3, "m", closed)),
        spaces=(Space(VNI, tuple((ip_address(address), place) for address, place in places)),),
        mappings=tuple(
            Mapping(1, protocol, ip_address(UNDERLAY["host"]), MAPPED, 1, ip_address(A[4]), FROM_OUTSIDE)
            for protocol in (6, 17)),
        uplinks=(Uplink(1, "up0", socket.if_nametoindex("up0")),),
        tunnel_ifindex=socket.if_nametoindex("vx0"),
    )


def _hook(switch: Switch, datapath: Datapath) -> None:
    def attach(name: str, where: Any, hook: Hook) -> None:
        switch.attach(socket.if_nametoindex(name), where, datapath.program_fd(hook), f"sluice_{hook}")

    for name in ("pa", "pb", "pm"):
        attach(name, "ingress", Hook.PORT_OUT)
        attach(name, "egress", Hook.PORT_IN)
    attach("up0", "ingress", Hook.UPLINK_IN)
    attach("vx0", "ingress", Hook.OVERLAY_IN)


def main() -> None:
    """Program, hook, answer."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Switch(Path(folder)) as switch,
        Datapath.open(None, Limits(flows=1024, rules=1024)) as datapath,
    ):
        datapath.apply(state(Allow()))
        _hook(switch, datapath)

        def logs() -> list[list[Any]]:
            events = [event for event in datapath.read_events() if isinstance(event, LogEvent)]
            return [[event.port, str(event.src), str(event.dst), event.dst_port] for event in events]

        answers: dict[str, Callable[[], Any]] = {
            "open": lambda: datapath.apply(state(Allow())),
            "reject": lambda: datapath.apply(state(Reject())),
            "drops": lambda: {reason.name: count for reason, count in datapath.drop_counts().items() if count},
            "meters": lambda: {meter: asdict(count) for meter, count in datapath.meters().items()},
            "logs": logs,
        }
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
