"""Whatever JSON comes as a configuration: an error of the protocol, or a request; never a fault of ours."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.cni.config import CAPABILITIES, OURS, parse_config
from runtimes.cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG, UNSUPPORTED_FIELD, CniError
from runtimes.cni.invocation import Invocation
from runtimes.cni.ports import published
from runtimes.cni.results import check_free, result
from runtimes.lean import dumps, loads

LEAVES = st.none() | st.booleans() | st.integers(-2, 70_000) | st.floats(allow_nan=False, allow_infinity=False) | \
    st.sampled_from(["", "x", "10.1.0.5", "10.1.0.0/24", "fd00::/64", "tcp", "02:00:00:00:00:05", "a/b", "\ud800"])
KEYS = st.sampled_from(["cni", "ips", "labels", "key", "value", "subnet", "rangeStart", "rangeEnd", "hostPort",
                        "protocol", "containerPort", "hostIP", "ingressRate", "egressBurst", "servers", "searches",
                        "red", "containerID", "ifname", "interfaces", "routes", "name", "sandbox", "address",
                        *CAPABILITIES])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
                    max_leaves=12)
FIELDS = st.sampled_from([*OURS, "args", "runtimeConfig", "prevResult", "dns", "name", "cniVersion",
                          "cni.dev/valid-attachments"])
CALL = Invocation("ADD", "c", "/run/netns/x", "eth0", {"K8S_POD_NAME": "web", "IP": "10.1.0.6"})
FOUND = {"interface": "eth0", "mac": "02:00:00:00:00:05", "mtu": 1450, "addresses": ["10.1.0.5/24"],
         "gateways": ["10.1.0.1"], "hostInterface": "slp1"}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4), st.dictionaries(st.sampled_from(CAPABILITIES), JSON, max_size=3),
       st.booleans())
def test_any_configuration_is_refused_or_becomes_a_request(raw: dict[str, Any], capabilities: dict[str, Any],
                                                          whole: bool) -> None:
    document = {"cniVersion": "1.1.0", "name": "red", **raw}
    if whole:
        document["runtimeConfig"] = capabilities
    try:
        config = parse_config(json.dumps(document).encode(), lenient=False)
        request, dns = config.request(CALL), config.dns()
        check_free(config.raw.get("prevResult"), request["interface"], CALL.netns)
        if request["mappings"]:
            published(request["mappings"], {"mode": "nat", "name": "red", "subnets": [{"prefix": "10.1.0.0/24"}]},
                      request["id"], [])
        dumps(request)
        dumps(result(config.version, CALL.netns, FOUND, dns, config.raw.get("prevResult")))
        config.valid()
    except CniError as error:
        refused = error
    else:
        return
    assert refused.code in (INCOMPATIBLE_VERSION, UNSUPPORTED_FIELD, DECODING_FAILURE, INVALID_CONFIG)
    assert "found: " in refused.msg
    assert refused.details


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_what_takes_away_needs_a_name_only(raw: dict[str, Any]) -> None:
    document = {**raw, "cniVersion": "1.1.0", "name": "red"}
    for field in ("args", "runtimeConfig", "dns", "prevResult", "interface"):
        document.pop(field, None)
    config = parse_config(json.dumps(document).encode(), lenient=True)
    assert config.attachment("c", "eth0") == "red/c/eth0"


@settings(max_examples=80, deadline=None)
@given(JSON)
def test_json_by_the_interpreter_s_own_parts_is_json(value: Any) -> None:
    assert loads(dumps(value)) == json.loads(json.dumps(value))
