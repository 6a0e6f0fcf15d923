"""The planner: only what a host needs, all that it needs, and the same by steps as at once."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_interface, ip_network
from typing import Any

from controller_kit import document, endpoint, host, mapping, nat, overlay, policy
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import plan_remotes
from controller.assign import assign, follow
from controller.check_relations import check_relations
from controller.checks import Surroundings
from controller.documents import Declared, parse
from controller.plan_acl import joined
from controller.planner import Plan, plan, replan
from controller.state import Change, Ref, State, Stored
from controller.validate import check, check_removal
from southbound.messages import AclTier, HostGoal, MappingGoal, NatGoal, NetworkGoal, PortGoal, RemotesGoal, Subnet

HOSTS = ("h1", "h2", "h3")


def after(state: State, *documents: Any, removed: Sequence[Ref] = ()) -> tuple[State, list[Change]]:
    """The state with documents applied (those that pass the checks) and objects removed (those that may be)."""
    fork, changes = state.fork(), []
    fork.revision += 1
    for each in documents:
        declared = parse(each, "document")
        assert isinstance(declared, Declared), declared
        old = fork.get(declared.ref)
        if check(declared, Surroundings(fork)):
            continue
        uid = old.uid if old else f"{declared.ref}@{fork.revision}"
        new = Stored(declared.ref, uid, fork.revision, "", declared.spec, declared.labels,
                     assign(declared, uid, fork, {}))
        fork.put(new)
        changes += [Change(old, new), *follow(Change(old, new), fork)]
    for ref in removed:
        stored = fork.get(ref)
        if stored is not None and not check_removal(stored, fork, set(removed) if len(removed) > 3 else set()):
            fork.remove(ref)
            changes.append(Change(stored, None))
    return fork, changes


def built(*documents: Any) -> State:
    return after(State.of([Stored(Ref("Tenant", "", "default"), "t", 1, "", parse_spec())]), *documents)[0]


def parse_spec() -> Any:
    from controller.resources import TenantSpec

    return TenantSpec()


BASE = [host("h1", "172.31.0.1"), host("h2", "172.31.0.2"), host("h3", "172.31.0.3"), overlay("red"),
        overlay("blue", "10.2.0.0/24"), nat("office", "192.168.250.0/24"), nat("lab", "192.168.251.0/24", "h2")]


def of(state_plan: Plan, name: str, kind: type[Any]) -> list[Any]:
    return [goal for goal in state_plan.goals(name).values() if isinstance(goal, kind)]


def remotes(made: Plan, name: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Name, addresses and VTEPs of the endpoints that a host is told of as others'."""
    return sorted((endpoint, address, address6, block.vteps) for block in of(made, name, RemotesGoal)
                  for endpoint, address, address6 in unpacked(block))


def unpacked(block: RemotesGoal) -> list[tuple[str, str, str]]:
    """Name and addresses of the endpoints of a block, whose columns must fit."""
    count = len(block.names)
    assert 0 < count <= plan_remotes.REMOTES_BLOCK
    assert len(block.macs) == 6 * count
    assert len(block.addresses) == 4 * count
    assert len(block.addresses6) in (0, 16 * count)
    fours = [str(IPv4Address(block.addresses[4 * i:4 * i + 4])) for i in range(count)]
    sixes = [str(IPv6Address(block.addresses6[16 * i:16 * i + 16] or bytes(16))) for i in range(count)]
    return [(name, "" if a == "0.0.0.0" else a, "" if b == "::" else b)
            for name, a, b in zip(block.names, fours, sixes, strict=True)]


def test_a_host_gets_its_ports_and_the_others_as_remotes() -> None:
    state = built(*BASE, endpoint("a", "red", "h1"), endpoint("b", "red", "h2"), endpoint("c", "blue", "h2"),
                  endpoint("web", "office"), mapping("www", "office", "web", 8080))
    made = plan(state)
    assert [(p.name, p.address, p.interface) for p in of(made, "h1", PortGoal)] == [
        ("a", "10.1.0.2/24", "eth0"), ("web", "192.168.250.2/24", "eth0")]
    assert remotes(made, "h1") == [("b", "10.1.0.3", "", ("172.31.0.2",))]
    assert sorted(n.name for n in of(made, "h1", NetworkGoal)) == ["office", "red"]
    assert sorted(n.name for n in of(made, "h2", NetworkGoal)) == ["blue", "red"]
    spaces = {n.name: n.space for h in ("h1", "h2") for n in of(made, h, NetworkGoal)}
    assert spaces == {"red": 4096, "blue": 4097, "office": 2**24}
    (www,) = of(made, "h1", MappingGoal)
    assert (www.external_address, www.external_ports, www.internal_address, www.internal_port) == (
        "0.0.0.0", (8080, 8080), "192.168.250.2", 80)
    assert www.port == next(p.id for p in of(made, "h1", PortGoal) if p.name == "web")
    assert of(made, "h1", HostGoal) == [HostGoal("self", "172.31.0.1", "", (20000, 32767), ("172.31.0.1",))]
    assert made.goals("h3") == {}


def test_all_that_nat_says_reaches_its_host() -> None:
    state = built(
        *BASE,
        nat("dual", "", mtu=1400, subnets=[{"prefix": "10.5.0.0/24"}, {"prefix": "10.6.0.0/25", "gateway": "10.6.0.9"},
                                           {"prefix": "FD00:5:0::/64"}],
            nat={"externalAddresses": ["172.16.0.11", "2001:DB8::1"], "exceptions": ["10.0.0.0/8"],
                 "destinations": ["0.0.0.0/0"], "filtering": "address-dependent", "portBlock": 64,
                 "portsPerEndpoint": 100, "log": True, "ipv6": "masquerade",
                 "timeouts": {"udp": 30, "tcpEstablished": 600.5}}),
        endpoint("vm", "dual", netns=None, tap="tap7", address="10.6.0.77"), endpoint("box", "dual"))
    made = plan(state)
    (goal,) = of(made, "h1", NetworkGoal)
    assert goal.subnets == (Subnet("10.5.0.0/24", "10.5.0.1"), Subnet("10.6.0.0/25", "10.6.0.9"),
                            Subnet("fd00:5::/64", "fd00:5::1"))
    assert goal.nat == NatGoal(
        ("172.16.0.11", "2001:db8::1"), ("10.0.0.0/8",), ("0.0.0.0/0",), "address-dependent", 64, 100, True,
        "masquerade", "", (("tcp_established", 600.5), ("udp", 30.0)))
    ports = {p.name: (p.netns, p.interface, p.address, p.address6) for p in of(made, "h1", PortGoal)}
    assert ports == {"vm": ("", "tap7", "10.6.0.77/25", "fd00:5::2/64"),
                     "box": ("ns-box", "eth0", "10.5.0.2/24", "fd00:5::3/64")}


def test_an_overlay_of_both_families_tells_remotes_both_addresses() -> None:
    state = built(*BASE, overlay("six", "", subnets=[{"prefix": "10.5.0.0/24"}, {"prefix": "fd00:5::/64"}]),
                  endpoint("a", "six", "h1"), endpoint("b", "six", "h2"))
    assert remotes(plan(state), "h1") == [("b", "10.5.0.3", "fd00:5::3", ("172.31.0.2",))]


def rules_of(*documents: Any) -> dict[str, list[tuple[Any, ...]]]:
    state = built(*BASE, nat("dual", "", subnets=[{"prefix": "10.5.0.0/24"}, {"prefix": "fd00:5::/64"}]),
                  endpoint("a", "dual"), endpoint("b", "dual"), *documents)
    return {p.name: [(t.policy, r.action, r.mapped, r.protocol, r.ports, r.peers, r.name) for t in p.tiers
                     for r in t.rules] for p in of(plan(state), "h1", PortGoal)}


def test_what_is_mapped_is_let_in_where_nothing_else_is_and_by_nobody_else() -> None:
    www = document("StaticMapping", "www", {"network": "dual", "endpoint": "a", "protocol": "tcp",
                                            "externalPort": "8000-8002", "internalPort": "80-82"})
    ping = document("StaticMapping", "ping", {"network": "dual", "endpoint": "a", "protocol": "icmp", "externalPort": 7,
                                              "externalAddress": "::", "allowFrom": ["2001:db8::/32", "10.0.0.0/8"]})
    allow = ("static-mappings", "allow", True)
    assert rules_of(www) == {"a": [], "b": []}, "whoever lets everything in needs no rule"
    assert rules_of(www, ping, policy("p", "dual", defaultIn="deny")) == {"a": [
        (*allow, 58, (), ("2001:db8::/32",), "default/ping"), (*allow, 6, ((80, 82),), (), "default/www")], "b": []}
    assert rules_of(ping) == {"a": [
        (*allow, 58, (), ("2001:db8::/32",), "default/ping"),
        ("static-mappings", "deny", True, 58, (), (), "default/ping")], "b": []}


def test_icmp_is_that_of_both_families_where_there_are_both() -> None:
    rule = {"direction": "in", "action": "deny", "protocol": "icmp", "from": {"endpoints": ["b"]}}
    assert rules_of(policy("p", "dual", rule))["a"] == [
        ("default/p", "deny", False, number, (), ("10.5.0.3/32", "fd00:5::3/128"), "default/p[0]")
        for number in (1, 58)]
    ((one,),) = (tier([policy("p", "red", rule)]),)
    assert [r.protocol for r in one.rules] == [1]


def test_ranges_and_whole_addresses_are_mapped_whole() -> None:
    spec = {"network": "office", "endpoint": "web"}
    state = built(*BASE, endpoint("web", "office"),
                  document("StaticMapping", "all", {**spec, "protocol": "any", "externalAddress": "172.16.0.9"}),
                  document("StaticMapping", "auto", {**spec, "protocol": "tcp", "externalPort": "auto",
                                                     "internalPort": "80-89"}),
                  document("StaticMapping", "same", {**spec, "protocol": "sctp", "externalPort": "90-99"}))
    made = {m.name: (m.protocol, m.external_address, m.external_ports, m.internal_port)
            for m in of(plan(state), "h1", MappingGoal)}
    assert made == {"all": ("any", "172.16.0.9", (0, 0), 0), "auto": ("tcp", "0.0.0.0", (10000, 10009), 80),
                    "same": ("sctp", "0.0.0.0", (90, 99), 90)}


def tier(documents: Sequence[Any], of_endpoint: str = "a") -> tuple[AclTier, ...]:
    state = built(*BASE, endpoint("a", "red", "h1", labels={"app": "web"}), endpoint("b", "red", "h2"),
                  endpoint("c", "red", "h2", labels={"app": "web", "env": "test"}), *documents)
    return next(p for p in of(plan(state), "h1", PortGoal) if p.name == of_endpoint).tiers


def test_policies_are_resolved_to_prefixes_in_order() -> None:
    deny = {"direction": "in", "action": "deny", "from": {"endpoints": ["b"]}, "protocol": "tcp",
            "ports": [80, "8000-8100"], "name": "no-web"}
    rest = {"direction": "out", "action": "pass", "to": {"labels": {"app": "web"}, "cidrs": ["192.0.2.0/24"]}}
    tiers = tier([policy("late", "red", rest, priority=2000), policy("early", "red", deny, priority=5)])
    assert [(t.policy, t.order) for t in tiers] == [("default/early", 5), ("default/late", 2000)]
    (rule,) = tiers[0].rules
    assert (rule.priority, rule.direction, rule.action, rule.peers, rule.protocol, rule.ports, rule.name) == (
        10, "in", "deny", ("10.1.0.3/32",), 6, ((80, 80), (8000, 8100)), "no-web")
    (rule,) = tiers[1].rules
    assert rule.peers == ("10.1.0.2/32", "10.1.0.4/32", "192.0.2.0/24")
    assert rule.name == "default/late[0]"


def test_what_a_rule_asks_for_beside_reaches_the_hosts() -> None:
    rules = ({"direction": "out", "action": "reject"}, {"direction": "out", "action": "allow", "dscp": 46},
             {"direction": "in", "action": "allow", "log": True})
    ((one,),) = (tier([policy("asks", "red", *rules)]),)
    assert [(rule.action, rule.dscp, rule.log) for rule in one.rules] == [
        ("reject", None, False), ("allow", 46, False), ("allow", None, True)]


def test_domains_go_to_the_host_in_normal_form() -> None:
    rule = {"direction": "out", "action": "allow", "domains": ["API.example.com.", "*.example.org"], "protocol": "tcp",
            "ports": [443]}
    ((made,),) = (one.rules for one in tier([policy("egress", "red", rule)]))
    assert (made.domains, made.peers, made.ports) == (("api.example.com", "*.example.org"), (), ((443, 443),))


def test_a_rule_that_selects_nobody_is_left_out_and_does_not_become_one_for_everybody() -> None:
    nobody = {"direction": "in", "action": "allow", "from": {"labels": {"app": "gone"}}}
    anyone = {"direction": "in", "action": "deny"}
    (found,) = tier([policy("p", "red", nobody, anyone)])
    assert [(r.action, r.peers, r.name) for r in found.rules] == [("deny", (), "default/p[1]")]


def test_a_policy_applies_to_the_endpoints_it_selects_and_deny_wins_among_defaults() -> None:
    state = built(*BASE, endpoint("a", "red", "h1", labels={"app": "web"}), endpoint("b", "red", "h1"),
                  endpoint("x", "blue", "h1"),
                  policy("p", "red", appliesTo={"labels": {"app": "web"}}, defaultIn="deny"),
                  policy("q", "red", defaultOut="deny", defaultIn="allow"),
                  policy("r", "red", appliesTo={"labels": {"app": "web"}}, tcp="strict"))
    ports = {p.name: p for p in of(plan(state), "h1", PortGoal)}
    assert [t.policy for t in ports["a"].tiers] == ["default/p", "default/q", "default/r"]
    assert {n: p.strict_tcp for n, p in ports.items()} == {"a": True, "b": False, "x": False}
    assert [t.policy for t in ports["b"].tiers] == ["default/q"]
    assert ports["x"].tiers == ()
    assert {n: (p.default_in, p.default_out) for n, p in ports.items()} == {
        "a": ("deny", "deny"), "b": ("allow", "deny"), "x": ("allow", "allow")}


@given(st.sets(st.integers(0, 300)))
def test_joined_prefixes_hold_exactly_the_addresses(numbers: set[int]) -> None:
    held = [int(a) for text in joined(sorted(numbers)) for a in map(int, IPv4Network(text))]
    assert sorted(held) == sorted(numbers)
    assert len(held) == len(set(held))


def test_joined_prefixes_reach_the_ends_of_the_address_space() -> None:
    assert joined([0]) == ["0.0.0.0/32"]
    assert joined([2**32 - 2, 2**32 - 1]) == ["255.255.255.254/31"]
    assert joined([int(IPv4Address("10.0.0.0")) + i for i in range(256)]) == ["10.0.0.0/24"]


NAMES = st.sampled_from([f"e{i}" for i in range(6)])
LABELS = st.dictionaries(st.sampled_from(["app", "env"]), st.sampled_from(["x", "y"]), max_size=2)


@st.composite
def mappings(draw: st.DrawFn, name: str, network: str) -> Any:
    sources = draw(st.sampled_from([{}, {"allowFrom": ["192.0.2.0/24", "2001:db8::/32"]}]))
    spec = draw(st.sampled_from([
        {"externalPort": "auto", "internalPort": 80}, {"externalPort": "auto", "internalPort": "80-82"},
        {"externalPort": "8000-8002", "internalPort": "9000-9002"}, {"externalPort": 8001, "externalAddress": "::"},
        {"protocol": "icmp", "externalPort": 7}, {"protocol": "any", "externalAddress": "192.0.2.7"}]))
    target = {"network": network, "endpoint": draw(NAMES), "protocol": "tcp"}
    return document("StaticMapping", name, target | spec | sources)


@st.composite
def overlays(draw: st.DrawFn) -> Any:
    """One of the overlays with other neighbours and another way out; some of it is refused."""
    name, prefix = draw(st.sampled_from([("red", "10.1.0.0/24"), ("blue", "10.2.0.0/24"), ("green", "10.3.0.0/24")]))
    via = draw(st.sampled_from([{"endpoint": "e0"}, {"endpoint": "e1"}, {"host": "h3"}, {"address": prefix[:7] + "9"}]))
    spec = draw(st.fixed_dictionaries({}, optional={
        "peers": st.lists(st.sampled_from([n for n in ("red", "blue", "green") if n != name]), max_size=1),
        "routes": st.just([{"destination": "10.99.0.0/16", "via": via}]),
        "egress": st.sampled_from(["nat", {"host": "h2"}, {"host": "h3"}]),
        "broadcast": st.just({"rate": 100, "burst": 200}), "isolation": st.booleans(),
        "qos": st.sampled_from([{"connections": 5}, {"egress": {"rate": "5mbit"}}])}))
    return overlay(name, prefix, **spec)


@st.composite
def placed(draw: st.DrawFn) -> Any:
    """An endpoint without a link: behind another one, or on the external host."""
    network = draw(st.sampled_from(["red", "blue"]))
    if draw(st.booleans()):
        network, on, link = draw(st.sampled_from([("red", "h1", "e0"), ("red", "h2", "e0"), ("blue", "h2", "e1")]))
        return endpoint(draw(NAMES), network, on, netns=None, behind=link)
    number = draw(st.integers(60, 62))
    return endpoint(draw(NAMES), network, "ext", netns=None, mac=f"02:00:00:00:01:{number}",
                    address=f"10.{'12'[network == 'blue']}.0.{number}")


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    match draw(st.integers(0, 9)):
        case 7:
            return "put", draw(overlays())
        case 8:
            return "put", draw(placed())
        case 9:
            return "put", endpoint(draw(NAMES), draw(st.sampled_from(["seg", "own"])), draw(st.sampled_from(HOSTS)),
                                   qos=draw(st.sampled_from([{"dscp": 5}, {"metering": True}])))
        case 0 | 1:
            network, at = draw(st.sampled_from([("red", None), ("blue", None), ("office", "h1"), ("lab", "h2"),
                                                        ("dual", "h1")]))
            return "put", endpoint(draw(NAMES), network, at or draw(st.sampled_from(HOSTS)), labels=draw(LABELS))
        case 2:
            peer = draw(st.sampled_from([None, {"labels": {"app": "x"}}, {"cidrs": ["10.1.0.0/28"]}]))
            rule: dict[str, Any] = {"direction": "in", "action": draw(st.sampled_from(["allow", "deny"]))}
            return "put", policy(draw(st.sampled_from(["p", "q"])), draw(st.sampled_from(["red", "dual"])),
                                 rule | ({"from": peer} if peer else {}), appliesTo={"labels": draw(LABELS)},
                                 defaultIn=draw(st.sampled_from(["allow", "deny"])))
        case 3:
            network = draw(st.sampled_from(["office", "lab", "dual"]))
            return "put", draw(mappings(draw(st.sampled_from(["m", "n"])), network))
        case 5:
            subnets = [{"prefix": "10.8.0.0/28", "exclude": draw(st.sampled_from([[], ["10.8.0.8/30"]]))}]
            subnets += draw(st.lists(st.sampled_from([{"prefix": "fd00:8::/64"}, {"prefix": "10.7.0.0/24"}]),
                                     max_size=2, unique_by=str))
            return "put", nat("dual", "", subnets=subnets, nat=draw(st.sampled_from([{}, {"log": True}])))
        case 4:
            number, name = draw(st.integers(1, 9)), draw(st.sampled_from((*HOSTS, "ext")))
            several = draw(st.sampled_from([f"172.31.1.{number}", [f"172.31.1.{number}", f"fd00:31::{number}"]]))
            port = draw(st.sampled_from([{}, {"vxlanPort": 4789}, {"vxlanPort": 8472}]))
            return "put", host(name, underlay=several, external=name == "ext", **port)
    kind = draw(st.sampled_from(["Endpoint", "Policy", "StaticMapping"]))
    return "remove", Ref(kind, "default", draw(st.one_of(NAMES, st.sampled_from(["p", "q", "m", "n"]))))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(steps(), min_size=1, max_size=3), max_size=12))
def test_properties_of_any_history(history: list[list[tuple[str, Any]]]) -> None:
    state = built(*BASE, overlay("green", "10.3.0.0/24"), host("ext", "172.31.0.9", external=True),
                  document("Network", "seg", {"mode": "transparent", "subnets": [{"prefix": "192.168.7.0/24"}]}),
                  document("Network", "own", {"mode": "private", "subnets": [{"prefix": "192.168.8.0/24"}]}))
    now = plan(state)
    known: dict[str, dict[Any, Any]] = {h: {} for h in HOSTS}     # what hosts have by patches alone
    history = [[("put", endpoint("e0", "red", "h1")), ("put", endpoint("e1", "blue", "h2"))], *history]
    for batch in history:
        tried, changes = after(state, *(each for what, each in batch if what == "put"),
                               removed=[each for what, each in batch if what == "remove"])
        put = [change.after for change in changes if change.after is not None]
        if check_relations(put, Surroundings(tried)):
            continue                        # refused as a whole
        state = tried
        now, patches = replan(now, state, changes)
        for name, patch in patches.items():
            for key, goal in patch.items():
                if goal is None:
                    known[name].pop(key)    # KeyError: told to remove what it never had
                else:
                    assert known[name].get(key) != goal, "told what it knows already"
                    known[name][key] = goal
        again = State.of(state.objects.values())
        assert (again.members, again.users) == (state.members, state.users)
        assert {k: {key: set(its) for key, its in v.items()} for k, v in again.externals.items()} == {
            k: {key: set(its) for key, its in v.items()} for k, v in state.externals.items()}
        assert again.addresses == state.addresses
        fresh = plan(state)
        for name in HOSTS:
            goals = now.goals(name)
            assert list(goals) == list(dict.fromkeys(goals))
            assert goals == fresh.goals(name) == known[name]
            check_goals(name, state, goals)
    order = ("StaticMapping", "Policy", "Endpoint", "Network")
    everything = sorted((r for r in state.objects if r.kind in order), key=lambda r: order.index(r.kind))
    state, changes = after(state, removed=everything)
    now, _ = replan(now, state, changes)
    assert all(now.goals(name) == {} for name in HOSTS)
    assert now == Plan()


def check_goals(name: str, state: State, goals: dict[Any, Any]) -> None:
    """What holds of the goal state of any host."""
    by_kind: dict[str, list[Any]] = {}
    for key, goal in goals.items():
        assert key == (goal.kind, goal.id)
        by_kind.setdefault(goal.kind, []).append(goal)
    ports = by_kind.get("port", [])
    assert {p.id for p in ports} == {e.uid for e in state.endpoints_on(name)}
    mine = {p.network for p in ports}
    for peer in [peer for uid in mine for peer in state.peers_of(state.uids[uid])]:
        mine = mine | {peer.uid}
    exits = {n.uid for n in state.networks() if name in n.spec.exits and state.has_endpoints(n.ref)}
    assert {n.id for n in by_kind.get("network", [])} == mine | exits
    assert len(by_kind.get("host", [])) == (1 if ports or exits else 0)
    for network in by_kind.get("network", []):
        stored = state.network(state.uids[network.id])
        assert stored is not None
        assert any(r.here for r in network.routes) == (name in stored.spec.exits)
        for route in network.routes:
            assert bool(route.address) != bool(route.vteps)
        if network.flood is not None and network.mode == "overlay":
            others = state.members.get(state.uids[network.id], {}).keys() - {name}
            assert len(network.flood.vteps) == len(others)
    for port in ports:
        endpoint = state.endpoint(state.uids[port.id])
        assert endpoint is not None
        assert port.behind == (state.link_of(endpoint).uid if endpoint.spec.behind else "")
        assert port.behind in {"", *(p.id for p in ports)}
        assert bool(port.netns) != bool(port.behind)
    for block in by_kind.get("remotes", []):
        assert block.network in mine | exits, "remotes of a network that this host does not know"
        assert block.vteps
        assert block.host != name
    by_id = {p.id: p for p in ports}
    for mapped in by_kind.get("mapping", []):
        port = by_id[mapped.port]
        outer = port.address6 if ":" in mapped.external_address else port.address
        assert mapped.internal_address == outer.partition("/")[0] != ""
        assert mapped.external_ports[0] <= mapped.external_ports[1]
    prefixes = {n.id: [ip_network(s.prefix) for s in n.subnets] for n in by_kind.get("network", [])}
    for port in ports:
        for text, version in ((port.address, 4), (port.address6, 6)):
            own = [p for p in prefixes[port.network] if p.version == version]
            assert bool(text) == bool(own), "an address of each family that the network has"
            if text:
                assert ip_interface(text).network in own
        leads = [m for m in by_kind.get("mapping", []) if m.port == port.id]
        tiers = [t for t in port.tiers if t.policy == "static-mappings"]
        names = {rule.name for t in tiers for rule in t.rules if rule.action == "allow"}
        assert names == ({f"{m.tenant}/{m.name}" for m in leads} if tiers else set())
        assert tiers or not (leads and port.default_in == "deny"), "what a mapping maps is let in"
    for network in by_kind.get("network", []):
        if network.mode == "overlay":
            everyone = {e.ref.name for e in state.endpoints_of(state.uids[network.id])}
            here = {p.name for p in ports if p.network == network.id}
            told = [n for r in by_kind.get("remotes", []) if r.network == network.id for n, _, _ in unpacked(r)]
            assert sorted(told) == sorted(everyone - here)
