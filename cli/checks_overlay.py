"""What `sluice doctor` asks of the links and the firewall that the overlay's packets pass: the traps of VXLAN.

Asked of every physical network card, for the doctor does not know which of them is the underlay. What a card does for
VXLAN is asked of the kernel (ethtool, linux/ethtool.h), by UDP port 4789; nothing is changed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import socket
import struct
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

from cli.findings import Finding, run_text

PORT = 4789
TUNNEL = "slvx0"
LINKS = Path("/sys/class/net")
LEAST_MTU = 1280 + 70  # an IPv6 packet of the least size, with outer headers of IPv6

SIOCETHTOOL = 0x8946
ETHTOOL_GSTRINGS, ETHTOOL_GSSET_INFO, ETHTOOL_GFEATURES = 0x1B, 0x37, 0x3A
FEATURES = 4  # ETH_SS_FEATURES
STRING_BYTES = 32

Active = Mapping[str, tuple[bool, bool]]  # by feature: whether it is on, and whether it can be

# Drivers whose cards, or the hypervisor behind them, are known to spoil or drop VXLAN with offloads on.
BUGGY = {
    "vmxnet3": ("VMware may spoil the inner checksum or drop the packet: small packets pass, transfers hang",
                "ethtool -K {link} tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off, or another vxlanPort"),
    "hv_netvsc": ("older Hyper-V hosts drop encapsulated segments",
                  "ethtool -K {link} tx-udp_tnl-segmentation off, if transfers hang while ping works"),
}
# Feature, what it costs when it is off.
WANTED = (
    ("tx-udp_tnl-segmentation", "large segments are cut by the CPU before they are sent"),
    ("tx-udp_tnl-csum-segmentation", "large segments with an outer checksum are cut by the CPU"),
    ("rx-udp_tunnel-port-offload", "the card spreads VXLAN by outer addresses only and checks no inner checksum"),
    ("rx-gro", "received segments are not joined: each packet passes by itself"),
    ("tx-checksum-ip-generic", "checksums of inner packets are made by the CPU"),
)
CHECKSUMS = ("tx-checksum-ip-generic", "tx-checksum-ipv4")


def overlay_findings() -> Iterator[Finding]:
    """Every check of this page."""
    for link in physical_links():
        yield from offloads(link, *features_of(link))
        yield headroom(link, int((LINKS / link / "mtu").read_text()))
    yield udp_port(TUNNEL in {path.name for path in LINKS.iterdir()})
    yield firewall(_ruleset())


def physical_links() -> list[str]:
    """Links of cards, also virtual ones: those with a device behind them."""
    return sorted(path.name for path in LINKS.iterdir() if (path / "device").exists())


def offloads(link: str, driver: str, active: Active) -> Iterator[Finding]:
    """What the card does for VXLAN, and whether it is known to do it badly."""
    name = f"vxlan offloads {link}"
    if driver in BUGGY and active.get("tx-udp_tnl-segmentation", (False, False))[0]:
        cost, todo = BUGGY[driver]
        yield Finding(name, "absent", f"driver {driver} with offloads on", cost, todo.format(link=link))
        return
    if not active:
        yield Finding(name, "unknown", f"driver {driver or 'unknown'} tells no features", "", "ethtool -k " + link)
        return
    off = [(feature, cost) for feature, cost in WANTED
           if not active.get(feature, (False, False))[0]
           and not (feature in CHECKSUMS and any(active.get(one, (False, False))[0] for one in CHECKSUMS))]
    if not off:
        yield Finding(name, "ok", f"driver {driver}: segmentation, checksums, receive port")
    else:
        can = [feature for feature, _ in off if active.get(feature, (False, False))[1]]
        todo = f"ethtool -K {link} {' '.join(f'{feature} on' for feature in can)}" if can else ""
        found = f"driver {driver}: off{'' if can else ', and cannot be on'}: {', '.join(feature for feature, _ in off)}"
        yield Finding(name, "absent", found, "; ".join(cost for _, cost in off), todo)
    if active.get("rx-lro", (False, False))[0]:
        yield Finding(f"lro {link}", "absent", "large receive offload is on",
                      "segments that were joined so cannot be forwarded to endpoints", f"ethtool -K {link} lro off")


def headroom(link: str, mtu: int) -> Finding:
    """What is left for endpoints after outer headers."""
    name = f"mtu {link}"
    left = f"{mtu}: endpoints of an overlay get {mtu - 50} over IPv4, {mtu - 70} over IPv6"
    if mtu < LEAST_MTU:
        return Finding(name, "absent", f"{mtu}", "no IPv6 in an overlay over this link (RFC 8200: 1280)",
                       f"ip link set {link} mtu {LEAST_MTU} or more, if the network behind it carries that")
    if mtu <= 1500:
        return Finding(name, "ok", f"{left}; with {mtu + 70} or more on all hosts they could have {mtu}")
    return Finding(name, "ok", left)


def udp_port(is_ours: bool, port: int = PORT) -> Finding:
    """Whether the VXLAN device can have its port."""
    name = f"udp port {port}"
    if is_ours:
        return Finding(name, "ok", f"{TUNNEL} has it, or its host's vxlanPort")
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as tried:
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind((any_address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return Finding(name, "absent", "taken by another program or VXLAN device",
                               "no overlay networks on this port",
                               f"ss -ulnp sport = :{port}; ip -d link show type vxlan; or set spec.vxlanPort of all"
                               " hosts to another")
    return Finding(name, "ok", "free")


def firewall(ruleset: str | None, port: int = PORT) -> Finding:
    """Whether the host's own packet filter lets VXLAN in. `ruleset`: as nft or iptables-save lists it; None: neither.

    Single packets are taken before it sees them, segments, fragments and IP options are not: so what it drops are the
    transfers, while ping works.
    """
    name = "firewall"
    if ruleset is None:
        return Finding(name, "ok", "no nft or iptables here")
    if ruleset == "":
        return Finding(name, "ok", "no rules, or they cannot be seen without privileges")
    if drops_by_default(ruleset) and str(port) not in ruleset:
        return Finding(name, "absent", f"input is dropped by default, and no rule names UDP port {port}",
                       "transfers through the overlay hang, while ping works",
                       f"allow it: nft add rule inet filter input udp dport {port} accept, or"
                       f" iptables -I INPUT -p udp --dport {port} -j ACCEPT")
    return Finding(name, "ok", f"input of UDP port {port} is not dropped by default")


def drops_by_default(ruleset: str) -> bool:
    """Whether a chain at the input hook ends with a drop."""
    if ruleset.lstrip().startswith("{"):
        try:
            entries = json.loads(ruleset).get("nftables", [])
        except ValueError:
            return False
        chains = (entry["chain"] for entry in entries if isinstance(entry, dict) and "chain" in entry)
        return any(chain.get("hook") == "input" and chain.get("policy") == "drop" for chain in chains)
    return any(line.startswith((":INPUT DROP", "-P INPUT DROP")) for line in ruleset.splitlines())


def features_of(link: str) -> tuple[str, Active]:
    """Driver and features of a card; none where the kernel does not tell."""
    driver = LINKS / link / "device" / "driver"
    name = driver.resolve().name if driver.exists() else ""
    try:
        return name, _features(link)
    except OSError:
        return name, {}


def _features(link: str) -> dict[str, tuple[bool, bool]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:

        def ask(request: array[int]) -> array[int]:
            address, _length = request.buffer_info()
            fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sQ16x", link.encode(), address))
            return request

        told = ask(array("I", [ETHTOOL_GSSET_INFO, 0, 1 << FEATURES, 0, 0]))
        count = told[4]
        words = ask(array("I", [ETHTOOL_GSTRINGS, FEATURES, count] + [0] * (count * STRING_BYTES // 4)))
        blocks = (count + 31) // 32
        bits = ask(array("I", [ETHTOOL_GFEATURES, blocks] + [0] * (4 * blocks)))
    text = words.tobytes()[12:]
    names = [text[at : at + STRING_BYTES].rstrip(b"\0").decode() for at in range(0, count * STRING_BYTES, STRING_BYTES)]
    found = {}
    for number, name in enumerate(names):
        available, _requested, active, _never = bits[2 + number // 32 * 4 : 6 + number // 32 * 4]
        bit = 1 << number % 32
        found[name] = bool(active & bit), bool(available & bit)
    return found


def _ruleset() -> str | None:
    for command in (["nft", "-j", "list", "ruleset"], ["iptables-save"]):
        if shutil.which(command[0]):
            return run_text(command)
    return None
