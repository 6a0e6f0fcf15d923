"""`probe rate ADDRESS`: what iperf3 gets through, in bits of Ethernet frames, which is what caps count.

Summary: `mbit` (megabits a second of whole frames at the receiver), `payload_mbit`, `lost_percent` (of datagrams) and
`intervals`, the sender's megabits of frames in each half second after that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, TCP_BYTES = 14, 20, 40, 8, 32    # TCP: with timestamps
TIMESTAMP_BYTES = 12
DATAGRAM_BYTES = 1200
BLOCK_BYTES = 16384                         # what iperf3 counts in; its own 128 kB are 5 % of two seconds at 10 Mbit/s


def rate(address: str, port: int, seconds: int, udp: str, streams: int, reverse: bool) -> int:
    """Measure, after a second in which bursts are used up, and print the summary."""
    command = ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-P", str(streams), "-J", "-i", "0.5",
               "-O", "1", "-l", str(DATAGRAM_BYTES if udp else BLOCK_BYTES)]
    command += ["-u", "-b", udp] if udp else []
    command += ["-R"] if reverse else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr)
        return 1
    json.dump(summary(json.loads(done.stdout), bool(udp), ":" in address), sys.stdout)
    return 0


def summary(told: dict[str, Any], udp: bool, ipv6: bool) -> dict[str, Any]:
    """What is printed of iperf3's JSON."""
    headers = ETHERNET_BYTES + (IPV6_BYTES if ipv6 else IPV4_BYTES)
    if udp:
        factor = (DATAGRAM_BYTES + UDP_BYTES + headers) / DATAGRAM_BYTES
    else:
        segment = told["start"]["tcp_mss_default"] - TIMESTAMP_BYTES
        factor = (segment + TCP_BYTES + headers) / segment
    end = told["end"]
    payload = end["sum_received"]["bits_per_second"] / 1e6 if "sum_received" in end else (
        end["sum"]["bits_per_second"] / 1e6 * (100 - end["sum"]["lost_percent"]) / 100)
    return {"mbit": round(payload * factor, 3), "payload_mbit": round(payload, 3),
            "lost_percent": end.get("sum", {}).get("lost_percent", 0),
            "intervals": [round(one["sum"]["bits_per_second"] / 1e6 * factor, 3) for one in told["intervals"]
                          if not one["sum"]["omitted"]]}
