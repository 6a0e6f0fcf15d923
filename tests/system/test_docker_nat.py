"""`docker network create -d nat`: what people know from Docker's bridge, on networks of ours."""

from __future__ import annotations

import os
import sys
import time

import pytest
from docker_agree import agree, mappings
from docker_kit import IMAGE, Docker, Refused, httpd
from docker_site import Host, Site, eventually

ECHO = """
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("", 53))
while True:
    echo.sendto(*echo.recvfrom(2048))
"""
ASK = """
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(1)
asking.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
try:
    print(asking.recv(99).decode())
except OSError:
    pass
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

CURL = ("curl", "-sS", "-m", "4")
PATIENT = (*CURL, "--retry", "5", "--retry-connrefused")      # a server that has just been started may not listen yet


def web(host: Host, *words: str) -> None:
    """The network of the issue's first example."""
    host.docker("network", "create", "-d", "nat", "--subnet", "192.168.250.0/24", *words, "web")


def test_published_ports_are_reached_from_everywhere(site: Site, host: Host) -> None:
    """As in the issue: two servers on ports 82 and 83, from the LAN, from the host, and from one to the other."""
    docker = host.docker
    web(host)
    docker.run("one", "--network", "web", "-p", "82:80", "--ip", "192.168.250.10", command=httpd("one"))
    docker.run("two", "--network", "web", "-p", f"{host.lan}:83:8080/tcp", command=httpd("two", 8080))
    for port, text in ((82, "one"), (83, "two")):
        assert site.world(*PATIENT, f"http://{host.lan}:{port}/") == text
        assert host(*CURL, f"http://{host.lan}:{port}/") == text
    assert host(*CURL, "http://127.0.0.1:82/") == "one"
    assert docker.inside("one", *CURL, f"http://{host.lan}:83/") == "two"
    assert docker.inside("two", *CURL, f"http://{host.lan}:82/") == "one"
    assert docker.inside("two", *CURL, f"http://{host.lan}:83/") == "two"
    assert docker.inside("one", "ping", "-c1", "-W2", "172.16.8.1")
    assert docker.exec("two", "wget", "-qO-", "http://one/") == "one"
    assert docker.address("one", "web") == "192.168.250.10"
    assert {port for _, port in mappings(host, "one")["80/tcp"]} == {82}
    assert mappings(host, "two") == {"8080/tcp": {(host.lan, 83)}}
    agree(host)
    docker.remove("one")
    with pytest.raises(Refused):
        site.world(*CURL, f"http://{host.lan}:82/")
    assert site.world(*CURL, f"http://{host.lan}:83/") == "two"
    agree(host)


def test_all_forms_of_publishing(site: Site, host: Host) -> None:
    docker = host.docker
    web(host)
    docker.run("ranges", "--network", "web", "-p", "9000-9002:80-82", "-p", "9010-9012:83", "-p", "85", "-p",
               f"{host.lan}:9020:53/udp", command=("sh", "-c", _servers(range(80, 86))))
    ports = mappings(host, "ranges")
    assert [_outer(ports[f"{inner}/tcp"]) for inner in (80, 81, 82)] == [9000, 9001, 9002]
    picked, automatic = _outer(ports["83/tcp"]), _outer(ports["85/tcp"])
    assert 9010 <= picked <= 9012
    assert automatic > 0
    for outer, inner in ((9000, 80), (9001, 81), (9002, 82), (picked, 83), (automatic, 85)):
        assert site.world(*PATIENT, f"http://{host.lan}:{outer}/") == str(inner)
    with docker.beside("ranges", sys.executable, "-c", ECHO):
        eventually(lambda: _echoes(site, host, 9020), "an answer by UDP", 10)
    agree(host)
    docker.run("all", "--network", "web", "--expose", "80", "--expose", "81/udp", "--expose", "90-91", "-P",
               command=httpd("all"))
    exposed = mappings(host, "all")
    assert exposed.keys() == {"80/tcp", "81/udp", "90/tcp", "91/tcp"}
    assert site.world(*PATIENT, f"http://{host.lan}:{_outer(exposed['80/tcp'])}/") == "all"
    assert len({_outer(each) for each in exposed.values()}) == 4
    agree(host)
    docker("restart", "--time", "0", "ranges")
    assert site.world(*PATIENT, f"http://{host.lan}:9001/") == "81"
    agree(host)
    docker("stop", "--time", "0", "ranges")
    agree(host)
    docker("start", "ranges")
    assert site.world(*PATIENT, f"http://{host.lan}:9002/") == "82"
    agree(host)


def test_a_port_in_use_is_refused_and_leaves_nothing(site: Site, host: Host) -> None:
    docker = host.docker
    web(host)
    docker.run("one", "--network", "web", "-p", "82:80", command=httpd("one"))
    before = site.remains()
    told = docker.refused("run", "-d", "--name", "two", "--network", "web", "-p", "82:80", IMAGE, "true")
    assert "82" in told
    assert any(word in told for word in ("in use", "taken", "allocated"))
    agree(host)
    assert site.remains() == before
    assert docker.names() == {"one"}
    docker.remove("two")
    docker.run("two", "--network", "web", "-p", "84:80", command=httpd("two"))
    assert site.world(*PATIENT, f"http://{host.lan}:84/") == "two"
    # Both families of the same outer port, and the same port of another protocol, are no conflict.
    docker.run("three", "--network", "web", "-p", "82:80/udp")
    agree(host)


def test_addresses_by_hand(site: Site, host: Host) -> None:
    docker = host.docker
    web(host, "--gateway", "192.168.250.254", "--ip-range", "192.168.250.128/25", "--aux-address",
        "printer=192.168.250.128")
    docker.run("one", "--network", "web", "--ip", "192.168.250.7", "--mac-address", "02:42:ac:11:65:43")
    docker.run("two", "--network", "web")
    mine = docker.networks("one")["web"]
    assert (mine["IPAddress"], mine["MacAddress"], mine["Gateway"]) == (
        "192.168.250.7", "02:42:ac:11:65:43", "192.168.250.254")
    assert "02:42:ac:11:65:43" in docker.inside("one", "ip", "link", "show", "eth0")
    assert "default via 192.168.250.254" in docker.inside("one", "ip", "route")
    other = docker.address("two", "web")
    assert other == "192.168.250.129"
    assert docker.inside("one", "ping", "-c1", "-W2", other)
    agree(host)
    for wrong, address in (("in use", "192.168.250.7"), ("", "10.1.2.3")):
        told = docker.refused("run", "-d", "--name", "bad", "--network", "web", "--ip", address, IMAGE, "true")
        assert wrong in told.lower()
        docker.remove("bad")
    agree(host)


def test_both_families_and_several_subnets(site: Site, host: Host) -> None:
    docker = host.docker
    docker("network", "create", "-d", "nat", "--ipv6", "--subnet", "192.168.251.0/24", "--subnet", "fd00:251::/64",
           "dual")
    docker.run("one", "--network", "dual", "--ip6", "fd00:251::77", "-p", "82:80", command=httpd("one"))
    docker.run("two", "--network", "dual")
    assert docker.networks("one")["dual"]["GlobalIPv6Address"] == "fd00:251::77"
    assert docker.inside("two", *CURL, "http://[fd00:251::77]/") == "one"
    assert docker.inside("two", "ping", "-c1", "-W2", "fd16:8::1")
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    assert docker.exec("two", "nslookup", "-type=aaaa", "one").count("fd00:251::77") == 1
    agree(host)


def test_an_internal_network_leads_nowhere_else(site: Site, host: Host) -> None:
    docker = host.docker
    web(host, "--internal")
    docker.run("one", "--network", "web", command=httpd("one"))
    docker.run("two", "--network", "web")
    assert docker.exec("two", "wget", "-qO-", "http://one/") == "one"
    with pytest.raises(Refused):
        docker.inside("two", "ping", "-c1", "-W1", "172.16.8.1")
    agree(host)


def test_sluice_as_ipam_driver(site: Site, host: Host) -> None:
    docker = host.docker
    docker("network", "create", "-d", "nat", "--ipam-driver", "sluice", "--subnet", "192.168.252.0/24", "own")
    docker.run("one", "--network", "own", command=httpd("one"))
    docker.run("two", "--network", "own", "--ip", "192.168.252.200")
    assert docker.exec("two", "wget", "-qO-", "http://one/") == "one"
    assert docker.address("one", "own").startswith("192.168.252.")
    assert docker.address("two", "own") == "192.168.252.200"
    assert "192.168.252.200" in docker.refused(
        "run", "-d", "--name", "bad", "--network", "own", "--ip", "192.168.252.200", IMAGE, "true")
    docker.remove("bad")
    agree(host)


def test_connect_and_disconnect_a_running_container(site: Site, host: Host) -> None:
    """The gateway is that of the network that Docker says: the first by name, until it goes."""
    docker = host.docker
    docker("network", "create", "-d", "nat", "--subnet", "192.168.240.0/24", "aaa")
    docker("network", "create", "-d", "nat", "--subnet", "192.168.241.0/24", "bbb")
    docker.run("far", "--network", "bbb", command=httpd("far"))
    docker.run("one", "--network", "bbb", "-p", "82:80", command=httpd("one"))
    assert "default via 192.168.241.1" in docker.inside("one", "ip", "route")
    docker("network", "connect", "--ip", "192.168.240.9", "--alias", "uno", "aaa", "one")
    docker.run("near", "--network", "aaa")
    assert docker.exec("near", "wget", "-qO-", "http://uno/") == "one"
    assert docker.exec("one", "wget", "-qO-", "http://far/") == "far"
    assert set(docker.networks("one")) == {"aaa", "bbb"}
    moved = docker.inside("one", "ip", "route")
    assert moved.count("default") == 1
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    agree(host)
    docker("network", "disconnect", "bbb", "one")
    assert "default via 192.168.240.1" in docker.inside("one", "ip", "route")
    assert docker.inside("one", "ping", "-c1", "-W2", "172.16.8.1")
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    agree(host)
    docker("network", "disconnect", "aaa", "one")
    assert "eth" not in docker.inside("one", "ip", "-br", "link")
    docker("network", "connect", "bbb", "one")
    assert docker.exec("one", "wget", "-qO-", "http://far/") == "far"
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    agree(host)


def test_labels_and_limits_of_an_endpoint(site: Site, host: Host) -> None:
    docker = host.docker
    web(host, "--label", "team=blue")
    docker.run("one", "--network", "name=web,driver-opt=label.role=db,driver-opt=qos.egress=100mbit,driver-opt=name=db")
    (found,) = host.endpoints().values()
    assert found["metadata"]["name"] == "db"
    assert found["metadata"]["labels"]["role"] == "db"
    assert found["metadata"]["labels"]["sluice.io/runtime"] == "docker"
    assert found["spec"]["qos"]["egress"]
    docker("network", "create", "-d", "private", "--subnet", "192.168.249.0/24", "other")
    docker.run("two", "--network", "other")
    docker("network", "connect", "--driver-opt", "label.role=web", "web", "two")
    labels = [each["metadata"]["labels"].get("role", "") for each in host.endpoints().values()]
    assert sorted(labels) == ["", "db", "web"]
    agree(host)


def test_names_resolve_and_follow_what_runs(site: Site, host: Host) -> None:
    docker = host.docker
    web(host)
    for number in (1, 2, 3):
        docker.run(f"db{number}", "--network", "web", "--network-alias", "db", "--hostname", f"node{number}")
    docker.run("client", "--network", "web")
    everyone = {docker.address(f"db{number}", "web") for number in (1, 2, 3)}
    assert resolved(docker, "client", "db") == everyone
    assert resolved(docker, "client", "db2") == {docker.address("db2", "web")}
    gone = docker.address("db2", "web")
    docker("stop", "--time", "0", "db2")
    assert resolved(docker, "client", "db") == everyone - {gone}


@pytest.mark.parametrize(("words", "hints"), [
    (("-d", "sluice", "-o", "mode=loud"), ("mode", "loud", "overlay")),
    (("-d", "nat", "-o", "colour=red"), ("colour",)),
    (("-d", "nat", "-o", "mode=overlay"), ("mode",)),
    (("-d", "transparent", "-o", "uplink=nothing0"), ("nothing0",)),
    (("-d", "nat", "--subnet", "172.16.8.0/24"), ("172.16.8.0/24",)),
    (("-d", "nat", "--ipam-driver", "sluice", "--ipam-opt", "colour=red"), ("colour",)),
])
def test_what_is_wrong_is_refused_with_what_to_do(
        site: Site, host: Host, words: tuple[str, ...], hints: tuple[str, ...]) -> None:
    began = time.monotonic()
    told = host.docker.refused("network", "create", *words, "bad")
    assert time.monotonic() - began < 8
    for hint in hints:
        assert hint in told
    assert "bad" not in host.docker("network", "ls", "--format", "{{.Name}}").split()
    assert not site.remains()


def _outer(published: set[tuple[str, int]]) -> int:
    """The port, the same of all addresses."""
    (port,) = {port for _, port in published}
    return port


def _servers(ports: range) -> str:
    """A shell script with a server on each port, that says its port."""
    each = "".join(f"mkdir -p /www{port} && echo {port} > /www{port}/index.html && httpd -p {port} -h /www{port}; "
                   for port in ports)
    return f"{each}exec sleep 1000000"


def _echoes(site: Site, host: Host, port: int) -> bool:
    return site.world(sys.executable, "-c", ASK, host.lan, str(port)) == "hello"


def resolved(docker: Docker, container: str, name: str) -> set[str]:
    """IPv4 addresses that Docker's DNS answers with."""
    return set(docker.inside(container, "dig", "+short", "+time=2", "@127.0.0.11", name, "A").split())
