"""Whatever is declared, leased, released and deleted in any order: leases stay true, and the plan by steps is the plan
at once."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from controller_kit import document, endpoint, host, nat, overlay, policy, tenant
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.documents import Declared, parse
from controller.edits import Edit, put_all, remove_all
from controller.errors import Refused
from controller.leases import HOST_LABEL, Wanted, is_whole, lease, unlease
from controller.planner import Plan, plan, replan
from controller.resources import TenantSpec
from controller.state import DEFAULT_TENANT_REF, Ref, State, Stored
from controller.subnets import subnets_of
from southbound.messages import LeaseGoal, PortGoal

HOSTS = ("h1", "h2", "h3")
SUBNETS = {"red": ["10.1.0.0/28"], "blue": ["10.2.0.0/27", "fd00:2::/64"], "office": ["192.168.250.0/27"],
           "own": ["192.168.8.0/28"], "seg": ["192.168.7.0/26"]}
NETWORKS = st.sampled_from(sorted(SUBNETS))
NAMES = st.sampled_from([f"e{n}" for n in range(6)])


def network(name: str, more: bool = False, made_by: str = "", **spec: Any) -> dict[str, Any]:
    prefixes = [*SUBNETS[name], *(["fd00:9::/64"] if more and len(SUBNETS[name]) == 1 else [])]
    spec = {"subnets": [{"prefix": prefix} for prefix in prefixes], **spec}
    if name in ("red", "blue"):
        made = overlay(name, **spec)
    elif name == "office":
        made = nat(name, "", **spec)
    else:
        made = document("Network", name, {"mode": "private" if name == "own" else "transparent", **spec})
    if made_by:
        made["metadata"]["labels"] = {HOST_LABEL: made_by}
    return made


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    match draw(st.integers(0, 5)):
        case 0 | 1:
            name, on = draw(NETWORKS), draw(st.sampled_from(HOSTS))
            spec = {"address": SUBNETS[name][0].rpartition(".")[0] + f".{draw(st.integers(1, 12))}"}
            return endpoint(draw(NAMES), name, on, **draw(st.sampled_from([{}, {}, spec])))
        case 2:
            name = draw(NETWORKS)
            exclude = SUBNETS[name][0].rpartition(".")[0] + f".{draw(st.integers(1, 12))}"
            made = network(name, draw(st.booleans()), draw(st.sampled_from(["", "h1"])))
            made["spec"]["subnets"][0]["exclude"] = draw(st.sampled_from([[], [exclude]]))
            return made
        case 3:
            peer = draw(st.sampled_from([{"endpoints": ["e0"]}, {"cidrs": ["10.0.0.0/8"]}]))
            selector = draw(st.sampled_from([{}, {"endpoints": ["e1"]}, {"labels": {"app": "x"}}]))
            return policy("p", draw(NETWORKS), {"direction": "in", "action": "deny", "from": peer}, appliesTo=selector,
                          defaultIn=draw(st.sampled_from(["allow", "deny"])))
        case 4:
            tenants = draw(st.sampled_from([["default"], ["other"], []]))
            return host(draw(st.sampled_from(HOSTS)), draw(st.sampled_from(["172.31.0.8", "fd00:31::8"])),
                        runtimes={"tenants": tenants})
    return overlay("blue", subnets=[{"prefix": each} for each in SUBNETS["blue"]],
                   peers=draw(st.sampled_from([[], ["red"]])), egress=draw(st.sampled_from(["none", {"host": "h3"}])))


STEPS = st.one_of(
    st.tuples(st.just("put"), documents()), st.tuples(st.just("put"), documents()),
    st.tuples(st.just("remove"), st.tuples(st.sampled_from(["Endpoint", "Network", "Host"]),
                                           st.one_of(NAMES, NETWORKS, st.sampled_from(HOSTS)))),
    st.tuples(st.just("lease"), st.tuples(st.sampled_from(HOSTS), NETWORKS, st.one_of(
        st.just(Wanted()), st.builds(Wanted, more=st.integers(1, 9)),
        st.builds(lambda n: Wanted(addresses=(f"10.1.0.{n}",)), st.integers(1, 14))))),
    st.tuples(st.just("release"), st.tuples(st.sampled_from(HOSTS), NETWORKS,
                                            st.sampled_from([None, ("10.1.0.2", "192.168.250.3")]))))


def take(state: State, what: str, args: Any) -> tuple[State, Edit]:
    """The state after a step; a refused one changes nothing."""
    fork, edit = state.fork(), Edit()
    fork.revision += 1
    try:
        if what == "put":
            declared = parse(args, "document")
            assert isinstance(declared, Declared), declared
            edit = put_all(fork, {}, [declared])
        elif what == "remove":
            kind, name = args
            edit = remove_all(fork, {}, [Ref(kind, "" if kind == "Host" else "default", name)], missing_ok=True)
        else:
            on, name, wanted = args
            ref = Ref("Network", "default", name)
            if fork.network(ref) is None or fork.host(on) is None:
                return state, Edit()
            edit.add(lease(fork, {}, on, ref, wanted)[0] if what == "lease" else unlease(fork, on, ref, wanted)[0])
    except Refused:
        return state, Edit()
    return fork, edit


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_any_history(history: list[tuple[str, Any]]) -> None:
    state = State.of([Stored(DEFAULT_TENANT_REF, "t", 1, "", TenantSpec())])
    now = plan(state)
    known: dict[str, dict[Any, Any]] = {name: {} for name in HOSTS}
    base = [tenant("other"), *(host(name, f"172.31.0.{n}") for n, name in enumerate(HOSTS, 1)),
            network("red"), network("blue", made_by="h2"), network("office"), network("own", host="h2"), network("seg")]
    for step in [*(("put", each) for each in base), *history]:
        state, edit = take(state, *step)
        now, patches = replan(now, state, edit.changes)
        for name, patch in patches.items():
            for key, goal in patch.items():
                if goal is None:
                    known[name].pop(key)        # KeyError: told to remove what it never had
                else:
                    assert known[name].get(key) != goal, "told what it knows already"
                    known[name][key] = goal
        assert now == plan(state)
        for name in HOSTS:
            assert now.goals(name) == known[name]
        check(state, now)


def check(state: State, now: Plan) -> None:
    """What holds of leases at any time."""
    again = State.of(state.objects.values())
    assert (again.leased, {host: set(its) for host, its in again.leasing.items()}) == (
        state.leased, {host: set(its) for host, its in state.leasing.items()})
    for each in state.networks():
        for on, addresses in each.assigned.leases.items():
            assert state.host(on) is not None
            assert len(set(addresses)) == len(addresses)
            for address in addresses:
                assert state.leased[each.ref, address] == on, "two hosts have it"
                [subnet] = [s for s in subnets_of(each) if ip_address(address) in s.prefix]
                assert address != subnet.gateway
                assert not subnet.excludes(address)
                ref = state.addresses.get((each.ref, address))
                holder = state.endpoint(ref) if ref is not None else None
                assert holder is None or holder.spec.host == on, "another host's endpoint has it"
        mine = {on for on in each.assigned.leases if state.is_external(on) is False
                and "default" in state.host(on).spec.runtimes.tenants}          # type: ignore[union-attr]
        goals = {on: goal for on in HOSTS for goal in now.goals(on).values()
                 if isinstance(goal, LeaseGoal) and goal.id == each.uid}
        assert goals.keys() == mine
        for on, goal in goals.items():
            assert goal.addresses == each.assigned.leases[on]
            assert goal.whole == is_whole(each, on) == bool(goal.ranges)
            assert ("network", each.uid) in now.goals(on)
            assert ("host", "self") in now.goals(on)
            like = [port for port in now.goals(on).values() if isinstance(port, PortGoal)
                    and port.network == each.uid and port.name not in goal.named]
            for port in like:               # none of them has labels
                assert (port.tiers, port.default_in) == (goal.tiers, goal.default_in)
