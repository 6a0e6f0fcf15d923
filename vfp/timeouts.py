"""How long a conversation may be idle: one place for both engines."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a pair may be idle, by its state (docs/engine.md, Ageing, says which RFC wants what)."""

    tcp_opening_s: float = 240
    tcp_syn_received_s: float = 240
    tcp_established_s: float = 7440
    tcp_fin_wait_s: float = 240
    tcp_time_wait_s: float = 2
    tcp_reset_s: float = 2
    udp_new_s: float = 120                  # before a reply was seen
    udp_s: float = 300
    icmp_s: float = 60
    other_s: float = 300
    binding_s: float = 2                    # of a source translation without flows


def nanoseconds(timeouts: Timeouts) -> dict[str, int]:
    """The fields of struct timeouts."""
    return {f"{each.name[:-2]}_ns": int(getattr(timeouts, each.name) * 1e9) for each in fields(timeouts)}
