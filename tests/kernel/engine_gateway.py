"""One host that translates an endpoint's IPv4 and IPv6 to its uplink, strict on TCP, until its standard input ends.

Run in the host's namespace by `test_engine_sockets.py`: `p0` leads to the endpoint, `up0` to the world. Prints
`ready` when packets may come.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from vfp.datapath.engine import Datapath, Hook, Limits
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IPV6,
    Action,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Group,
    Layer,
    LocalPort,
    Mapping,
    Match,
    Pool,
    Port,
    PortRange,
    Rule,
    Space,
    ToUplink,
    TranslateSource,
    Untranslate,
    Uplink,
    Virtual,
)
from vswitch.switch import Switch

ENDPOINT_MAC = "02:00:00:00:00:03"
ENDPOINT = {4: "10.7.0.3", 6: "fd00::3"}
GATEWAY = {4: "10.7.0.1", 6: "fd00::1"}
HOST = {4: "198.51.100.1", 6: "2001:db8::1"}
WORLD = {4: "198.51.100.7", 6: "2001:db8::7"}
MAPPED_PORT, SERVER_PORT = 8080, 80

_SPACE, _PORT, _UPLINK, _TCP = 1 << 24, 3, 1, 6
_SOLICITATION: dict[str, Any] = {"ethertype": ETH_P_IPV6, "protocol": 58, "icmp_type": 135}


def _rule(priority: int, action: Action, **match: Any) -> Rule:
    return Rule(priority, Match(**match), action, f"r{priority}")


def _layer(name: str, out: tuple[Rule, ...], in_: tuple[Rule, ...] = ()) -> Layer:
    return Layer(name, (Group(name, out),), (Group(name, in_),) if in_ else (), Deny(), Allow())


def state(port: int, uplink: int) -> EngineState:
    """The engine's state for these two interfaces."""
    mac, gateway_mac = bytes.fromhex(ENDPOINT_MAC.replace(":", "")), bytes.fromhex("0200000000fe")
    guard = _layer("guard", (
        _rule(1, Allow(), ethertype=ETH_P_ARP, arp_sender_is_source=True),
        _rule(2, Allow(), nd_sender_is_source=True, **_SOLICITATION),
        _rule(3, Allow(), src=IPv6Network(ENDPOINT[6]), src_mac=mac),
        _rule(4, Allow(), src=IPv4Network(ENDPOINT[4]), src_mac=mac),
    ))
    nat = _layer("nat", (
        _rule(1, Allow(), ethertype=ETH_P_ARP),
        _rule(2, Allow(), **_SOLICITATION),
        _rule(3, TranslateSource(6), ethertype=ETH_P_IPV6),
        _rule(4, TranslateSource(4)),
    ), (_rule(1, Untranslate()),))
    vnet = _layer("vnet", (
        _rule(1, AnswerArp(_SPACE), ethertype=ETH_P_ARP),
        _rule(2, AnswerArp(_SPACE), **_SOLICITATION),
        _rule(3, ToUplink(_UPLINK)),
    ))
    return EngineState(
        ports=(Port(_PORT, "p3", port, mac, gateway_mac, (guard, nat, vnet), strict_tcp=True),),
        spaces=(Space(_SPACE, (
            (IPv6Address(ENDPOINT[6]), LocalPort(_PORT, mac)), (IPv6Address(GATEWAY[6]), Virtual(gateway_mac)),
            (IPv4Address(ENDPOINT[4]), LocalPort(_PORT, mac)), (IPv4Address(GATEWAY[4]), Virtual(gateway_mac)),
        )),),
        pools=(
            Pool(6, _UPLINK, (IPv6Address(HOST[6]),), PortRange(20000, 20999)),
            Pool(4, _UPLINK, (IPv4Address(HOST[4]),), PortRange(20000, 20999)),
        ),
        mappings=(
            Mapping(_UPLINK, _TCP, IPv6Address(HOST[6]), MAPPED_PORT, _PORT, IPv6Address(ENDPOINT[6]), SERVER_PORT),
            Mapping(_UPLINK, _TCP, IPv4Address(HOST[4]), MAPPED_PORT, _PORT, IPv4Address(ENDPOINT[4]), SERVER_PORT),
        ),
        uplinks=(Uplink(_UPLINK, "up0", uplink),),
    )


def main() -> None:
    """Program, hook, wait."""
    port, uplink = socket.if_nametoindex("p0"), socket.if_nametoindex("up0")
    with (
        tempfile.TemporaryDirectory() as folder,
        Switch(Path(folder)) as switch,
        Datapath.open(None, Limits(flows=1024, rules=1024)) as datapath,
    ):
        datapath.apply(state(port, uplink))
        switch.attach(port, "ingress", datapath.program_fd(Hook.PORT_OUT), "sluice_port_out")
        switch.attach(uplink, "ingress", datapath.program_fd(Hook.UPLINK_IN), "sluice_uplink_in")
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
