"""Names and addresses: of this machine, of the page that asks, of the sockets that are listened on."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket

import hsd

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[\w.~-]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
ANY = ("0.0.0.0", "::")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
"""What /etc/hosts of common systems calls this machine. None of them can be a name of somebody's on the internet."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address, in any spelling: `localhost`, `127.1`, `[::1]`.

    Another name could be anybody's.
    """
    name = host.strip("[]").lower().removesuffix(".")
    if name in LOCAL_NAMES or name.endswith(".localhost"):
        return True
    address = ip_address(name)
    return address is not None and address.is_loopback


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text spells, as browsers read it; None for a name. IPv4 inside IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        # Short and hexadecimal spellings. Anything that begins with a digit and is none of them is a name.
        if not re.fullmatch(r"[0-9][0-9a-fx.]*", text, re.ASCII):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address


def host_name(header: str) -> str | None:
    """The name in a `Host` header, without port and brackets, in small letters; None for what is no host."""
    found = _HOST.fullmatch(header)
    if not found or int(found["port"] or 0) > 65535:
        return None
    name = found["name"]
    if name.startswith("[") and not isinstance(ip_address(name[1:-1]), ipaddress.IPv6Address | ipaddress.IPv4Address):
        return None
    return name.strip("[]").lower()


def names_this_machine(name: str) -> bool:
    """Whether a request to this name, which arrived at a loopback address, can have been meant for this machine.

    A web page elsewhere can point a name of its own at 127.0.0.1, but no page can own an address.
    """
    return is_loopback(name) or str(ip_address(name)) in ANY


def same_origin(origin: str, host: str, schemes: set[str]) -> bool:
    """Whether an `Origin` header names the page of this `Host`, reached by one of these schemes."""
    scheme, found, rest = origin.lower().partition("://")
    if not found or scheme not in schemes:
        return False
    default = DEFAULT_PORTS[scheme]
    return rest.removesuffix(default) == host.lower().removesuffix(default)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses that a host has: both kinds for localhost and `::`.

    Raises:
        HsdError: there is no such address here, or the port is taken.
    """
    name = _plain(host)
    hosts = ["::", "0.0.0.0"] if name == "::" else [name]
    failed: OSError | None = None
    sockets: list[socket.socket] = []
    try:
        if not name:
            raise OSError(errno.EADDRNOTAVAIL, "it is empty")
        found = dict.fromkeys(
            (family, address)
            for each in hosts
            for family, _, _, _, address in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)
        )
        for family, address in found:
            try:
                sockets.append(_bound(family, address))
            except OSError as error:
                failed = error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not sockets and failed:
            raise failed
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        raise _refused(host, port, error) from error
    return sockets


def _plain(host: str) -> str:
    """Without brackets; an address in its usual spelling."""
    name = host.strip("[]")
    address = ip_address(name)
    return str(address) if address and "%" not in name else name


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    # The protocol is named, since asyncio sets TCP_NODELAY only then. Without it the second part of an answer waits
    # 40 ms for the first one to be acknowledged.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port that only waits for its last connections to time out is free.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        # Two sockets of one address may be bound, but only one may listen.
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound


def _refused(host: str, port: int, error: OSError | UnicodeError) -> hsd.HsdError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return hsd.HsdError(
            f"Port {port} on {host} is in use.", f"Stop the other program, or choose another: --port {port + 1}."
        )
    if number == errno.EACCES:
        return hsd.HsdError(f"Port {port} needs more rights than you have.", "Choose one above 1023.")
    return hsd.HsdError(
        f"Cannot listen on '{host}': {getattr(error, 'strerror', None) or error}.",
        "Use 127.0.0.1, ::1, or an address of this machine.",
    )


def address_of(host: str, port: int) -> str:
    """What a person on this machine types to open what listens there."""
    name = "localhost" if _plain(host) in ANY else _plain(host)
    return f"http://[{name.replace('%', '%25')}]:{port}/" if ":" in name else f"http://{name}:{port}/"
