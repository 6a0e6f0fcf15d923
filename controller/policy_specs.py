"""What a Policy may say: rules for endpoints of one network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from controller.texts import DomainText, Labels, LabelValue, Model, Name, PortsText, PrefixText, ProtocolText, wrong


class Selector(Model):
    """Endpoints of the policy's network: those named and those that carry all the labels."""

    endpoints: tuple[Name, ...] = ()
    labels: Labels = Field(default_factory=dict)


class Peer(Selector):
    """The other side of a rule: endpoints by name or labels, or prefixes."""

    cidrs: tuple[PrefixText, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Peer:
        if not (self.endpoints or self.labels or self.cidrs):
            raise wrong("names nobody", "give endpoints, labels or cidrs; leave it out to mean anyone")
        return self


class PolicyRule(Model):
    """One rule; the lowest priority that matches decides, `pass` hands on to the next policy.

    `deny` drops in silence; `reject` tells the sender: a connection is refused, anything else "prohibited".
    """

    name: LabelValue = ""
    direction: Literal["in", "out"]
    action: Literal["allow", "deny", "reject", "pass"]
    priority: int | None = Field(default=None, ge=0, le=65535, description="default: 10, 20, 30, ... by position")
    from_: Peer | None = Field(default=None, alias="from", description="with direction in; absent: anyone")
    to: Peer | None = Field(default=None, description="with direction out; absent: anyone")
    protocol: ProtocolText | None = None
    ports: tuple[PortsText, ...] = Field(default=(), description="destination ports; with tcp, udp or sctp")
    dscp: int | None = Field(default=None, ge=0, le=63, description="with allow: packets leave with it, both ways")
    log: bool = Field(default=False, description="with allow: a record of each new flow; a drop always has one")
    domains: tuple[DomainText, ...] = Field(
        default=(), max_length=256,
        description="out and allow: names whose addresses, as DNS tells them to the endpoint, may be reached")

    @model_validator(mode="after")
    def _sides(self) -> PolicyRule:
        if self.domains and (self.direction != "out" or self.action != "allow"):
            raise wrong(f"a rule with domains has direction {self.direction} and action {self.action}",
                         "domains open a way out: use direction out and action allow")
        if self.domains and self.to is not None:
            raise wrong("a rule has 'to' and domains", "make it two rules")
        if self.direction == "in" and self.to is not None:
            raise wrong("a rule of direction in has 'to'", "use 'from', or direction out")
        if self.direction == "out" and self.from_ is not None:
            raise wrong("a rule of direction out has 'from'", "use 'to', or direction in")
        if self.ports and self.protocol not in ("tcp", "udp", "sctp", 6, 17, 132):
            raise wrong(f"ports need a protocol that has them, found {self.protocol or 'none'}",
                         "set protocol to tcp, udp or sctp")
        if (self.dscp is not None or self.log) and self.action != "allow":
            raise wrong(f"{'dscp' if self.dscp is not None else 'log'} with action {self.action}",
                         "use action allow, or leave it out")
        if self.dscp is not None and self.log:
            raise wrong("a rule has both dscp and log", "use one of them")
        return self

    @property
    def outcome(self) -> tuple[str, int | None, bool]:
        """What becomes of a packet that the rule matches; rules of one priority may not differ in it."""
        return self.action, self.dscp, self.log

    @property
    def peer(self) -> Peer | None:
        """The other side, whichever the direction."""
        return self.from_ if self.direction == "in" else self.to


class PolicySpec(Model):
    """Rules for endpoints of one network."""

    network: Name
    priority: int = Field(default=1000, ge=0, le=65535, description="order between policies; lower runs first")
    applies_to: Selector = Field(default_factory=Selector, description="empty: every endpoint of the network")
    rules: tuple[PolicyRule, ...] = Field(default=(), max_length=6000)
    default_in: Literal["allow", "deny"] = "allow"
    default_out: Literal["allow", "deny"] = "allow"
    tcp: Literal["pickup", "strict"] = Field(
        default="pickup", description="strict: drop TCP segments that do not fit their connection's state, and"
        " connections that did not begin with a SYN; pickup: let them pass as far as the rules do")

    @model_validator(mode="after")
    def _priorities(self) -> PolicySpec:
        seen: dict[tuple[str, int], PolicyRule] = {}
        for position, (priority, rule) in enumerate(self.numbered()):
            other = seen.setdefault((rule.direction, priority), rule)
            if other.outcome != rule.outcome:
                raise wrong(f"rules[{position}] and another rule of direction {rule.direction} have "
                             f"priority {priority} and different actions", "give them different priorities")
        return self

    def numbered(self) -> tuple[tuple[int, PolicyRule], ...]:
        """The rules with the priorities that hold."""
        return tuple(((position + 1) * 10 if rule.priority is None else rule.priority, rule)
                     for position, rule in enumerate(self.rules))
