"""Ports of the host, once it is known what network they lead into."""

from __future__ import annotations

from runtimes.cni.errors import INVALID_CONFIG, CniError
from runtimes.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

MAPPED = "nat"                              # the mode whose networks can have mappings


def published(asked: list[dict[str, Any]], network: dict[str, Any], attachment: str,
              others: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mappings that this attachment gets.

    A runtime tells all networks of a container the same ports, in no order; the first one gets them. Without an
    address of the host they hold in both families, if the network has both.

    Raises:
        CniError: INVALID_CONFIG. The network has no mappings.
    """
    if network["mode"] != MAPPED:
        raise CniError(INVALID_CONFIG, f"runtimeConfig.portMappings: network {network['name']} is {network['mode']}, "
                       f"and only {MAPPED} networks have ports of the host (found: {asked[0]!r})",
                       f"publish no ports; or add a {MAPPED} network, and leave portMappings out of the capabilities "
                       "of this one")
    container = attachment.split("/")[1]
    for each in others:
        if each["id"] != attachment and each["id"].split("/")[1:2] == [container] and each["mappings"]:
            return []
    families = {":" in subnet["prefix"] for subnet in network["subnets"]}
    wild = [address for address, six in (("0.0.0.0", False), ("::", True)) if six in families]
    return [{"externalAddress": address, **each} for each in asked
            for address in ([each["externalAddress"]] if "externalAddress" in each else wild)]


__all__ = ["published"]
