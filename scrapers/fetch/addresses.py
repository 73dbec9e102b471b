"""Which addresses may be connected to: the public internet, and what the user has opened by name.

Asked with the address that a socket is about to connect to, not with a name or a URL: so literals, DNS answers,
redirects and names that resolve to something else the second time all pass through here.
"""

import ipaddress
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset({80, 443, 8080, 8443})
"""Ports of public addresses that are asked; a list of images is no reason to knock elsewhere."""

_METADATA = {ipaddress.ip_address("168.63.129.16")}
"""Cloud metadata services at addresses that look public (Azure). The others are link-local or private."""
_NEVER = tuple(map(ipaddress.ip_network, (
    "192.0.0.0/24",  # protocol assignments; a cloud's metadata service among them
    "192.88.99.0/24",  # 6to4 relays
    "2001::/32",  # Teredo, which wraps IPv4
    "3fff::/20",  # documentation
)))  # fmt: skip
"""Not public whatever this Python's tables say, which differ from version to version."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def parse_opened(texts: Iterable[str]) -> tuple[Sequence[Network], Sequence[str]]:
    """Return the networks that a user opens, and what is wrong with those that are none."""
    networks: list[Network] = []
    problems = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            problems.append(f"allow_private {text!r}: {error}; write an address (127.0.0.1) or a network (10.1.0.0/16)")
    return networks, problems


def is_opened(address: Address, opened: Iterable[Network]) -> bool:
    """Whether the user has opened exactly this address or a network around it."""
    mapped = getattr(address, "ipv4_mapped", None)
    return any(a in network for a in (address, mapped) if a is not None for network in opened)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, looking through IPv4 addresses wrapped in IPv6."""
    if isinstance(address, ipaddress.IPv4Address):
        usual = address.is_global and not address.is_multicast and not address.is_reserved
        return usual and address not in _METADATA and not any(address in network for network in _NEVER)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:  # how a network without IPv4 names the rest of the internet
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in _GLOBAL_UNICAST and address.is_global and not any(address in network for network in _NEVER)


def refusal(address: str, port: int, opened: Sequence[Network]) -> str | None:
    """Return why a socket must not connect to an address, or None."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address} is not an IP address"
    if is_opened(parsed, opened):
        return None
    if not is_public(parsed):
        return f"{address} is not a public address"
    if port not in PORTS:
        return f"port {port} is not one of {', '.join(map(str, sorted(PORTS)))}"
    return None
