"""Fetches pictures from hosts that were allowed, and from nowhere that such a name may lead to.

A name that is allowed can still point into the server's own network, and can point elsewhere when
it is asked again. So a name is resolved once, all its addresses are judged, and the connection goes
to the address that was judged; every redirect begins anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable

import httpx

from lapilli.app.serve.refusals import Refusal

MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    IPv6 addresses that carry an IPv4 one inside are judged by that one.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class RemotePictures:
    """Fetches pictures from other hosts.

    Args:
        hosts: names that may be asked, `NAME` for the scheme's own port or `NAME:PORT`.
        seconds: for a picture, redirects included.
        resolver: from a name and a port to IP addresses.
        is_allowed: whether an IP address may be connected to.
        trusted: certificates of authorities; None for those that browsers trust.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        seconds: float,
        resolver: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._seconds = seconds
        self._resolve = resolver
        self._is_allowed = is_allowed
        self._trusted = trusted or httpx.create_ssl_context()

    async def fetch(self, url: str, *, max_bytes: int) -> bytes:
        """Return what an address holds.

        Raises:
            Refusal: a host is not allowed, or there is nothing to be had in time.
        """
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpx.AsyncClient(
                    trust_env=False,  # a proxy would resolve the name anew
                    verify=self._trusted,
                ) as client,
            ):
                next_url = httpx.URL(url)
                for _ in range(1 + MAX_REDIRECTS):
                    response = await self._ask(client, next_url)
                    try:
                        if not response.has_redirect_location:
                            return await _content(response, max_bytes)
                        next_url = next_url.join(response.headers["location"])
                    finally:
                        await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError) as error:
            raise Refusal("image_fetch_failed") from error
        raise Refusal("image_fetch_failed")

    async def _ask(self, client: httpx.AsyncClient, url: httpx.URL) -> httpx.Response:
        """Ask one address, without following where it leads."""
        usual = _PORTS.get(url.scheme)
        if usual is None or url.userinfo or not url.host:
            raise Refusal("image_host_refused")
        port = url.port or usual
        name = url.host.lower()
        if (name if port == usual else f"{name}:{port}") not in self._hosts:
            raise Refusal("image_host_refused")
        addresses = await self._resolve(url.raw_host.decode("ascii"), port)
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise Refusal("image_host_refused")
        request = client.build_request(
            "GET",
            url.copy_with(host=addresses[0]),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        return await client.send(request, stream=True, follow_redirects=False)


async def _content(response: httpx.Response, max_bytes: int) -> bytes:
    """The bytes as they are sent: nothing is unpacked, which could make them many more."""
    if response.status_code != 200 or "content-encoding" in response.headers:
        raise Refusal("image_fetch_failed")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > max_bytes:
            raise Refusal("image_too_large")
    return bytes(content)
