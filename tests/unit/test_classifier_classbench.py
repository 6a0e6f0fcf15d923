"""The ClassBench reader: what a line means, what is refused, and that the reference gives the golden answers."""

from __future__ import annotations

import gzip
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from bench.classbench import FormatError, Header, frame, perturbed, read_headers, read_rules
from vfp.model import Allow, Group, Match, PortRange, Rule
from vfp.reference.layers import search
from vfp.reference.packet import parse

DATA = Path(__file__).parents[3] / "shared/data/classbench"
if not DATA.is_dir():
    DATA = Path("/work/shared/data/classbench")

_LINE = "@10.1.2.0/24\t0.0.0.0/0\t0 : 65535\t80 : 90\t0x06/0xFF\t0x1000/0x1000\t\n"


@pytest.mark.parametrize("compress", [False, True])
def test_a_line_is_a_rule(tmp_path: Path, compress: bool) -> None:
    file = tmp_path / "rules"
    text = _LINE + "\n@1.2.3.4/32 5.6.7.8/32 5 : 5 0 : 65535 0x00/0x00\n"
    file.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    first = Match(src=IPv4Network("10.1.2.0/24"), protocol=6, dst_ports=PortRange(80, 90))
    second = Match(src=IPv4Network("1.2.3.4/32"), dst=IPv4Network("5.6.7.8/32"), src_ports=PortRange(5, 5))
    assert read_rules(file) == (Rule(0, first, Allow(), "0"), Rule(1, second, Allow(), "1"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("10.0.0.0/8 1.0.0.0/8 0 : 1 0 : 1 0x06/0xFF", "not `@src"),
        ("@10.0.0.0/33 1.0.0.0/8 0 : 1 0 : 1 0x06/0xFF", "33"),
        ("@10.0.0.0/8 1.0.0.0/8 2 : 1 0 : 1 0x06/0xFF", "port range"),
        ("@10.0.0.0/8 1.0.0.0/8 0 : 65536 0 : 1 0x06/0xFF", "port range"),
        ("@10.0.0.0/8 1.0.0.0/8 0 : 1 0 : 1 0x06/0x0F", "protocol mask"),
    ],
)
def test_a_line_that_is_no_rule_is_refused_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "rules"
    file.write_text(_LINE + line + "\n")
    with pytest.raises(FormatError, match=f"line 2: .*{said}"):
        read_rules(file)


@pytest.mark.parametrize("line", ["1 2 3 4", "1 2 3 4 x", "1 2 3 70000 6", "-1 2 3 4 6", "4294967296 2 3 4 6"])
def test_a_header_that_is_none_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    file = tmp_path / "headers"
    file.write_text(f"1 2 3 4 6 99 2\n{line}\n")
    with pytest.raises(FormatError, match="line 2"):
        read_headers(file)


def test_more_rules_are_made_by_moving_prefixes() -> None:
    rules = (
        Rule(0, Match(src=IPv4Network("10.0.0.0/8"), protocol=6), Allow(), "0"), Rule(1, Match(), Allow(), "1"),
    )
    many = perturbed(rules, 5)
    assert [rule.priority for rule in many] == [0, 1, 2, 3, 4]
    assert many[:2] == rules
    assert many[2].match.src is not None
    assert many[2].match.src.prefixlen == 8
    assert many[2].match.src != rules[0].match.src
    assert many[3].match == Match()


@pytest.mark.parametrize("protocol", [0, 1, 6, 17, 47, 132, 255])
def test_a_header_becomes_a_frame_with_it(protocol: int) -> None:
    header = Header(int(IPv4Address("10.0.0.1")), int(IPv4Address("10.0.0.2")), 1234, 80, protocol)
    packet = parse(frame(header))
    assert packet.tuple.src == IPv4Address("10.0.0.1")
    assert packet.tuple.dst == IPv4Address("10.0.0.2")
    assert packet.tuple.protocol == protocol
    if protocol in (6, 17, 132):
        assert (packet.tuple.src_port, packet.tuple.dst_port) == (1234, 80)


@pytest.mark.parametrize(("name", "count"), [("acl1_1k", 0), ("fw1_1k", 0), ("ipc1_1k", 0), ("acl1_10k", 40),
                                             ("fw1_10k", 40), ("ipc1_10k", 40)])
def test_the_reference_gives_the_golden_answers(name: str, count: int) -> None:
    """All headers of the sets of 1,000 rules, some of the others: the reference goes through rules one by one."""
    rules = read_rules(DATA / f"{name}.gz")
    with gzip.open(DATA / f"{name}.gold.gz", "rt") as lines:
        wanted = [int(line.split()[5]) for line in lines]
    headers = read_headers(DATA / f"{name}.gold.gz")
    group = Group("classbench", rules)
    step = len(headers) // count if count else 1
    for header, index in list(zip(headers, wanted, strict=True))[::step]:
        packet = parse(frame(header))
        steps = search(group, packet.headers, packet.tuple)
        found = next((rule.priority for rule, why_not in steps if not why_not), -1)
        assert found == index, header
