"""The `host` layer: how processes of the host and endpoints reach each other where plain addresses do not serve.

In: a process at 127.0.0.1 (::1) that speaks to a mapped port comes as the gateway of the endpoint's subnet, which the
endpoint can answer. Policies see the gateway: as they do when the host speaks to the endpoint's own address.

Out: the gateway of a shadowed network is no address of the host's stack; what goes there goes to an address of the
host.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from nat.pools import gateway_pool, host_source, mapped_networks
from policy.addresses import ETHERTYPES, ND_TYPES, Interface, gateways, host_prefix, nd, own_addresses, to_prefix
from policy.contribution import HostView, Tables
from southbound.messages import NetworkGoal, PortGoal
from vfp.model import ETH_P_ARP, Allow, Group, Layer, Match, Prefix, Rewrite, Rule, TranslateSource

__all__ = ["HostAccess"]

_LOOPBACK: dict[int, Prefix] = {4: IPv4Network("127.0.0.0/8"), 6: IPv6Network("::1/128")}


class HostAccess:
    """Contributes `host` to the ports of nat networks that are mapped or shadowed, while lo is an uplink."""

    def __init__(self) -> None:
        self._view: HostView | None = None
        self._mapped: frozenset[str] = frozenset()                  # NetworkGoal.id

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """A source that can be answered, in; an address that is there, out."""
        network = view.networks[port.network]
        if network.mode != "nat" or not view.loopback:
            return None
        if self._view is not view:
            self._view, self._mapped = view, frozenset(network.id for network in mapped_networks(view))
        out = tuple(_to_gateway(network, view)) if network.id in view.shadowed else ()
        into = tuple(_from_loopback(port, network, view)) if network.id in self._mapped else ()
        if not out and not into:
            return None
        return Layer(
            "host",
            groups_out=(Group("gateway", out),) if out else (),
            groups_in=(Group("loopback", into),) if into else (),
            default_out=Allow(),
            default_in=Allow(),
        )

    def tables(self, view: HostView) -> Tables:
        """The pools are `SourceNat`'s."""
        return Tables()


def _from_loopback(port: PortGoal, network: NetworkGoal, view: HostView) -> Iterator[Rule]:
    for own in own_addresses(port):
        gateway = _gateway_of(own, gateways(network))
        name = gateway_pool(gateway.ip) if gateway is not None else ""
        if name in view.pool_ids:
            match = Match(ethertype=ETHERTYPES[own.version], src=_LOOPBACK[own.version])
            yield Rule(own.version, match, TranslateSource(view.pool_ids[name]), "as-gateway")


def _gateway_of(own: Interface, found: tuple[Interface, ...]) -> Interface | None:
    return next((gateway for gateway in found if own.ip in gateway.network), None)


def _to_gateway(network: NetworkGoal, view: HostView) -> Iterator[Rule]:
    rules = []
    for number, gateway in enumerate(gateways(network), 10):
        address = host_source(view, gateway.version)
        if address is not None:
            rules.append(Rule(number, to_prefix(host_prefix(gateway.ip)), Rewrite(dst=address), "gateway"))
    if rules:
        yield Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp")
        yield from (Rule(0, nd(icmp_type), Allow(), "nd") for icmp_type in ND_TYPES)
        yield from rules
