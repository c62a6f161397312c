"""Who asks, and what they may: keys, turns, salts and priorities.

Clients take turns for slots (`bento_kv.engine.turns`), so who they are must not be theirs to choose: it is the key that they
send, where there are several, or else the address that they come from. A salt of the request's own does not count.
"""

from __future__ import annotations

import hmac
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from bento_kv.server.problems import Problem

_NETWORK = 64  # bits of an IPv6 address that are one customer's; the rest is theirs to choose


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        client: whose turn it takes.
        key: which of the keys it sent, by number; None if there are none.
        min_priority: the most urgent priority that it may ask for.
    """

    client: str = ""
    key: int | None = None
    min_priority: int = 0

    def salt(self, asked: str | None) -> str | None:
        """The salt of its cached prefixes: different keys never share one, whatever they ask for."""
        if self.key is None:
            return None if asked is None else f"any/{asked}"
        return f"key {self.key}/{asked or ''}"

    def check_priority(self, asked: int | None) -> None:
        """Raise a 403 if it may not ask for this priority."""
        if asked is not None and asked < self.min_priority:
            raise Problem(
                403,
                f"'priority' is {asked}, and {self.min_priority} is the most urgent that this server takes from you. Leave "
                f"it out, or ask whoever runs the server for a key of BENTO_KV_URGENT_API_KEY or for --arg "
                f"min_priority={asked}.",
                type="permission_error",
                param="priority",
                code="priority_not_allowed",
            )


# The caller of the request that is being handled, for handlers that a framework calls without it.
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039 - it is frozen


class Clients:
    """Tells callers apart.

    Args:
        api_key: one of these, white space between them, has to be sent as `Authorization: Bearer KEY`; anybody may ask if
            None.
        urgent_api_key: likewise, keys whose requests may have any priority.
        min_priority: the most urgent priority of all others.

    Raises:
        ValueError: there is no key in what is given as such, which would look like protection and be none.
    """

    def __init__(self, api_key: str | None = None, *, urgent_api_key: str | None = None, min_priority: int = 0) -> None:
        plain, urgent = _keys(api_key), _keys(urgent_api_key)
        self._keys = [(key, False) for key in plain] + [(key, True) for key in urgent]
        self._required = bool(plain)
        self._min_priority = min_priority

    def caller(self, scope: Scope) -> Caller | None:
        """Who sent the request; None if it needs a key and has none of them."""
        number = self._key_of(Headers(scope=scope).get("authorization", ""))
        address = address_of(scope)
        if number is None:
            return None if self._required else Caller(address, None, self._min_priority)
        urgent = self._keys[number][1]
        client = f"key {number}" if len(self._keys) > 1 else address
        return Caller(client, number, -_ANY_PRIORITY if urgent else self._min_priority)

    def _key_of(self, authorization: str) -> int | None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Header values are bytes that Starlette reads as Latin-1. All keys are compared, each in constant time, so that the
        # time tells nothing of any.
        sent = given.strip().encode("latin-1")
        same = [hmac.compare_digest(sent, key) for key, _ in self._keys]
        return same.index(True) if any(same) else None


_ANY_PRIORITY = 2**31


def _keys(given: str | None) -> list[bytes]:
    if given is None:
        return []
    if not given.split():
        raise ValueError("the API key is empty; leave it out to serve without one")
    return [key.encode("utf-8") for key in given.split()]


def address_of(scope: Scope) -> str:
    """Where a request comes from, as clients are told apart."""
    return network((scope.get("client") or ("",))[0])


def network(host: Any) -> str:
    """An address, or of IPv6 the network that it is in."""
    try:
        address = ip_address(host)
    except ValueError:
        return str(host)
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> _NETWORK << _NETWORK))
