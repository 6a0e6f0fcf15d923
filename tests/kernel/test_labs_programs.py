"""Programs that labs bring along: servers that say whom they see, many flows at once, a machine's NIC; and IPv6."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from rich.console import Console

from labs.run import run

NAME = "labs-p"

TOPOLOGY = f"""
name: {NAME}
segments: {{wire: {{}}, far: {{}}}}
nodes:
  a:
    interfaces: {{eth0: {{segment: wire, address: 10.77.0.1/24, extra_addresses: ["2001:db8::1/64"]}}}}
    routes: [{{via: 10.77.0.254}}, {{via: "2001:db8::254"}}]
  r:
    ip_forward: true
    interfaces:
      eth0: {{segment: wire, address: 10.77.0.254/24, extra_addresses: ["2001:db8::254/64"]}}
      eth1: {{segment: far, address: 10.78.0.1/24, extra_addresses: ["2001:db8:1::1/64"]}}
  c:
    interfaces: {{eth0: {{segment: far, address: 10.78.0.2/24, extra_addresses: ["2001:db8:1::2/64"]}}}}
    routes: [{{via: 10.78.0.1}}, {{via: "2001:db8:1::1"}}]
  vm: {{}}
services:
  serve: {{in: [c, vm], command: "probe serve 80 --say ${{place}}", ready: {{tcp: [80], udp: [80]}}}}
chapters:
- title: t
  steps:
  - try: it
    expect: holds
    do:
"""


def lab(tmp_path: Path, actions: str) -> tuple[int, str]:
    """Run a lab with one step of these actions: exit status, what it printed."""
    file, text = tmp_path / "lab.yaml", io.StringIO()
    file.write_text(TOPOLOGY + textwrap.indent(textwrap.dedent(actions), " " * 4))
    return run(file, Console(file=text, width=200)), text.getvalue()


def test_server_says_whom_it_sees_in_both_families_and_takes_and_gives_bytes(tmp_path: Path) -> None:
    status, text = lab(tmp_path, r"""
        - each:
          - {to: 10.78.0.2, host: 10.78.0.2, source: 10.77.0.1}
          - {to: "2001:db8:1::2", host: "[2001:db8:1::2]", source: "2001:db8::1"}
          do:
          - run: curl -sS -g --max-time 3 http://${host}/
            in: a
            check: {stdout: {matches: '^c answers ${source} \d+$'}}
          - run: probe udp-ask ${to} 80 --source-port 4444
            in: a
            check: {stdout: "c answers ${source} 4444"}
        - run: [sh, -c, "cd ${work}; curl -sS http://10.78.0.2/bytes/100000 > it; wc -c < it; sha256sum < it"]
          in: a
          check: {stdout: {matches: '^100000$'}}
          save: {sum: {stdout: '^([0-9a-f]{64})'}}
        - run: "curl -sS --data-binary @${work}/it http://10.78.0.2/"
          in: a
          check: {stdout: "c took ${sum}"}
        - start: greeter
          command: probe serve 4000 --say a --greet 10.78.0.2 80
          in: a
          ready: {log: ^greeted}
        - {log: greeter, text: {matches: 'greeted: c answers 10\.77\.0\.1 4000'}}
        - run: probe udp-ask 10.77.0.1 4000
          in: c
          check: {stdout: {matches: '^a answers 10\.78\.0\.2 '}}
    """)
    assert status == 0, text


def test_hold_keeps_flows_and_tells_which_were_refused_lost_or_changed(tmp_path: Path) -> None:
    status, text = lab(tmp_path, r"""
        - each: [{protocol: udp}, {protocol: tcp}]
          do:
          - start: hold-${protocol}
            command: probe hold ${protocol} 10.78.0.2 80 --count 100 --source-port 3000
            in: a
            ready: {log: held 100 of 100}
          - finish: hold-${protocol}
            signal: TERM
            check:
              json: {answered: 100, refused: 0, again: 100, lost: 0, changed: 0, distinct: 100, low: 3000, high: 3099,
                     addresses: 10.77.0.1}
        - start: hold-udp                   # the name again: only what this run says counts
          command: probe hold udp 10.78.0.2 80 --count 7
          in: a
          ready: {log: held 7 of 7}
        - {finish: hold-udp, signal: TERM, check: {json: {answered: 7}}}
        - run: cat ${logs}/hold-udp.log
          check: {stdout: {matches: '^held 100 of 100\nheld 7 of 7$'}}
        - run: probe hold tcp 10.78.0.2 9 --count 3 --at-once
          in: a
          check: {json: {answered: 0, refused: 3}}
        - start: cut
          command: probe hold tcp 10.78.0.2 80 --count 5 --timeout 0.3
          in: a
          ready: {log: held 5}
        - {kill: serve/c, signal: TERM}
        - {finish: cut, signal: TERM, check: {json: {answered: 5, again: 0, lost: 5}}}
    """)
    assert status == 0, text


def test_machine_is_joined_to_the_host_by_tap_devices(tmp_path: Path) -> None:
    status, text = lab(tmp_path, rf"""
        - start: vm
          command: probe vm tap0 eth0 --host {NAME}-a --mac 02:00:00:00:00:11 --address 10.9.0.2/24 --gateway 10.9.0.1
          in: vm
          ready: {{log: eth0 waits for tap0}}
        - run: ip tuntap add tap0 mode tap
          in: a
        - {{log: vm, text: {{matches: eth0 is joined to tap0}}}}
        - run: ip address add 10.9.0.1/24 dev tap0
          in: a
        - run: ip link set tap0 up
          in: a
        - run: ping -c 1 -W 2 10.9.0.2
          in: a
        - run: curl -sS --max-time 3 http://10.9.0.2/
          in: a
          check: {{stdout: {{matches: '^vm answers 10\.9\.0\.1 '}}}}
        - run: [sh, -c, "curl -sS --max-time 5 http://10.9.0.2/bytes/30000000 | wc -c"]
          in: a
          check: {{stdout: 30000000}}
        - {{kill: vm, signal: TERM}}
        - run: ip link show eth0
          in: vm
          check: {{exit: failure}}
    """)
    assert status == 0, text
