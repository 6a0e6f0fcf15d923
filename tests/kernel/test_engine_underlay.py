"""Tunnels without the VXLAN device, between two engines with real sockets: what goes by it, and what does not; sizes,
MTU, segments, offloads, checksums, DSCP and ECN; over both families of underlay.
"""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import ip_address

import pytest
from engine_vtep import Vtep

from vfp.model import EngineState, Port

MTU = 1500
MACS = {"a": bytes.fromhex("02000000000a"), "c": bytes.fromhex("02000000000c")}
UDP_SEGMENT, IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 103, 10, 14, 23, 24
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
VERSIONS = pytest.mark.parametrize("version", [4, 6])

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


class End(Vtep):
    """One of two engines' hosts; the state may be changed by a test."""

    gateways = (ip_address("10.7.0.1"), ip_address("fd07::1"))

    def apply(self, **port: object) -> None:
        """Program the engine; `port`: fields of its port that differ."""
        super().apply()
        self.change(**port)

    def change(self, *, paths: tuple[tuple[object, int], ...] = (), shaper: int = 0, **port: object) -> None:
        """The state with some of it otherwise."""
        from engine_vtep import GATEWAY_MAC, open_layers

        from vfp.model import Space, Underlay
        ours = self.ours
        own = Port(1, "a", self.host.link("pa")["ifindex"], ours.port_mac, GATEWAY_MAC, open_layers(ours.vni),
                   gateways=self.gateways)
        self.engine.apply(EngineState(
            ports=(replace(own, **port),), spaces=(Space(ours.vni, ours.entries),), tunnel_ifindex=self.tunnel,  # type: ignore[arg-type]
            underlays=(Underlay(ip_address(ours.underlay), self.host.link("ul0")["ifindex"], self.mtu),),
            tunnel_port=ours.port, paths=paths, shaper=shaper))  # type: ignore[arg-type]
