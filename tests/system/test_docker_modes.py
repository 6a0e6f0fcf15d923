"""The other modes by Docker's commands: an overlay between two daemons, networks on a segment, private ones."""

from __future__ import annotations

import os

import pytest
from docker_agree import agree
from docker_kit import IMAGE, Refused, httpd
from docker_site import Host, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

CURL = ("curl", "-sS", "-m", "4")
OVERLAY = ("network", "create", "-d", "sluice", "-o", "mode=overlay", "-o", "network=red", "--ipam-driver", "sluice",
           "--ipam-opt", "network=red")


def test_two_daemons_share_an_overlay_of_one_name(site: Site) -> None:
    one, two = site.hosts
    for host in site.hosts:
        host.docker(*OVERLAY, "--subnet", "10.77.0.0/24", "red")
    one.docker.run("web", "--network", "name=red,driver-opt=label.role=web", command=httpd("web on h1"))
    two.docker.run("client", "--network", "red")
    address = one.docker.address("web", "red")
    assert address != two.docker.address("client", "red")
    assert two.docker.inside("client", *CURL, f"http://{address}/") == "web on h1"
    agree(one, two)
    (red,) = site.list("Network")
    assert red["metadata"]["name"] == "red"
    assert red["spec"]["mode"] == "overlay"
    # A policy of the controller holds for containers, at once.
    site.apply({"kind": "Policy", "metadata": {"name": "closed"}, "spec": {
        "network": "red", "appliesTo": {"labels": {"role": "web"}},
        "rules": [{"name": "no-web", "direction": "in", "action": "deny", "protocol": "tcp", "ports": [80]}]}})
    try:
        with pytest.raises(Refused):
            two.docker.inside("client", "curl", "-sS", "-m", "2", f"http://{address}/")
        assert two.docker.inside("client", "ping", "-c1", "-W2", address)
    finally:
        site.ask(lambda client: client.delete("Policy", "closed", wait_s=5))
    assert two.docker.inside("client", *CURL, f"http://{address}/") == "web on h1"
    # The address is taken for the other host, too; the network stays as long as somebody has it.
    told = two.docker.refused("run", "-d", "--name", "bad", "--network", "red", "--ip", address, IMAGE, "true")
    assert address in told
    two.docker.remove("bad")
    one.docker.clean()
    assert len(site.list("Network")) == 1
    agree(one, two)


def test_a_declared_overlay_is_joined_and_outlives_docker(site: Site) -> None:
    one, two = site.hosts
    site.apply({"kind": "Network", "metadata": {"name": "red"},
                "spec": {"mode": "overlay", "subnets": [{"prefix": "10.78.0.0/24"}, {"prefix": "fd00:78::/64"}]}})
    try:
        one.docker("network", "create", "-d", "sluice", "-o", "network=red", "--ipam-driver", "sluice", "--ipam-opt",
                   "network=red", "--ipv6", "red")
        two.docker("network", "create", "-d", "sluice", "-o", "network=red", "--subnet", "10.78.0.0/24", "red")
        told = two.docker.refused("network", "create", "-d", "sluice", "-o", "network=red", "--subnet", "10.99.0.0/24",
                                  "wrong")
        assert "10.78.0.0/24" in told
        assert "--subnet" in told or "ipam-driver" in told
        one.docker.run("web", "--network", "red", command=httpd("six"))
        mine = one.docker.networks("web")["red"]
        assert mine["IPAddress"].startswith("10.78.0.")
        assert mine["GlobalIPv6Address"].startswith("fd00:78::")
        two.docker.run("client", "--network", "red", "--ip", "10.78.0.200")
        assert two.docker.inside("client", *CURL, f"http://{mine['IPAddress']}/") == "six"
        agree(one, two)
        one.docker.clean()
        two.docker.clean()
        assert [each["metadata"]["name"] for each in site.list("Network")] == ["red"]
    finally:
        one.docker.clean()
        two.docker.clean()
        site.ask(lambda client: client.delete("Network", "red", wait_s=5))


def test_an_address_that_another_daemon_chose_is_refused_with_the_way_out(site: Site) -> None:
    """Docker's own address management knows one daemon's containers only."""
    one, two = site.hosts
    for host in site.hosts:
        host.docker("network", "create", "-d", "sluice", "-o", "mode=overlay", "-o", "network=red", "--subnet",
                    "10.77.0.0/24", "red")
    one.docker.run("first", "--network", "red")
    told = two.docker.refused("run", "-d", "--name", "second", "--network", "red", IMAGE, "true")
    assert one.docker.address("first", "red") in told
    assert "--ipam-driver sluice" in told
    two.docker.remove("second")
    agree(one, two)


def test_transparent_is_on_the_segment(site: Site) -> None:
    one, two = site.hosts
    for host in site.hosts:
        host.docker("network", "create", "-d", "transparent", "-o", "parent=seg0", "--subnet", "172.16.9.0/24",
                    "--gateway", "172.16.9.1", "--ip-range", f"172.16.9.{64 * host.number}/26", "lan")
    one.docker.run("web", "--network", "lan", "--mac-address", "02:42:ac:10:09:50", command=httpd("on the segment"))
    two.docker.run("client", "--network", "lan")
    address = one.docker.address("web", "lan")
    assert site.world(*CURL, f"http://{address}/") == "on the segment"
    assert "02:42:ac:10:09:50" in site.world("ip", "neigh", "show", address)
    assert two.docker.inside("client", *CURL, f"http://{address}/") == "on the segment"
    agree(one, two)


def test_l2bridge_and_l2tunnel_are_on_the_segment_with_their_hosts_mac(site: Site, host: Host) -> None:
    for mode, last in (("l2bridge", 40), ("l2tunnel", 50)):
        host.docker("network", "create", "-d", mode, "-o", "uplink=seg0", "--subnet", "172.16.9.0/24", "--gateway",
                    "172.16.9.1", mode)
        host.docker.run("web", "--network", mode, "--ip", f"172.16.9.{last}", command=httpd(mode))
        assert site.world(*CURL, f"http://172.16.9.{last}/") == mode
        assert "02:d0:00:00:09:01" in site.world("ip", "neigh", "show", f"172.16.9.{last}")
        agree(host)
        host.docker.clean()


def test_private_networks_are_this_hosts_alone(site: Site, host: Host) -> None:
    docker = host.docker
    for name in ("one", "two"):             # the same prefix twice is two worlds; Docker itself must be told so
        docker("network", "create", "-d", "private", "--ipam-driver", "sluice", "--subnet",
               "10.66.0.0/24" if name == "one" else "10.67.0.0/24", name)
        docker.run(f"web-{name}", "--network", name, command=httpd(name))
    docker.run("client", "--network", "one")
    assert docker.exec("client", "wget", "-qO-", "http://web-one/") == "one"
    with pytest.raises(Refused):
        docker.inside("client", "curl", "-m", "1", f"http://{docker.address('web-two', 'two')}/")
    with pytest.raises(Refused):
        docker.inside("client", "ping", "-c1", "-W1", "172.16.8.1")
    agree(host)


def test_the_mtu_of_the_overlay_is_the_containers(site: Site, host: Host) -> None:
    host.docker(*OVERLAY, "--subnet", "10.77.0.0/24", "red")
    host.docker("network", "create", "-d", "nat", "--subnet", "192.168.250.0/24", "-o",
                "com.docker.network.driver.mtu=1400", "web")
    host.docker.run("one", "--network", "red")
    host.docker.run("two", "--network", "web")
    assert "mtu 1450" in host.docker.inside("one", "ip", "link", "show", "eth0")
    assert "mtu 1400" in host.docker.inside("two", "ip", "link", "show", "eth0")
