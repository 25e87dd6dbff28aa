"""Where packets of calls go: addresses of this machine; servers that help through NAT, where somebody names them."""

import ipaddress
from dataclasses import dataclass
from typing import Any

from vivavoce.errors import RequestError, need


@dataclass(frozen=True)
class Ice:
    """How calls reach this machine. servers: STUN and TURN servers, as `stun:HOST:PORT` or
    `turn:USER:PASSWORD@HOST:PORT?transport=udp`; none: nobody outside is asked. addresses: of this machine; none: all.
    """

    servers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def check(self) -> "Ice":
        """Itself; raises `RequestError` for a server that cannot be understood, `MissingExtra` without aiortc."""
        if self.servers:
            self.configuration()
        return self

    def configuration(self) -> Any:
        """As aiortc has it, whose own default would ask a server on the internet."""
        aiortc = need("aiortc", "webrtc", "WebRTC calls")
        parse = need("aiortc.rtcicetransport", "webrtc", "WebRTC calls").parse_stun_turn_uri
        servers = []
        for given in self.servers:
            scheme, _, rest = given.partition(":")
            login, _, place = rest.rpartition("@")
            user, _, password = login.partition(":")
            try:
                parse(f"{scheme}:{place}")
            except ValueError as error:
                words = "stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT is expected"
                raise RequestError(f"--ice {scheme}:{place}: {error}; {words}") from error
            servers.append(aiortc.RTCIceServer(f"{scheme}:{place}", user or None, password or None))
        return aiortc.RTCConfiguration(servers)

    @classmethod
    def of(cls, host: str, servers: tuple[str, ...] = ()) -> "Ice":
        """For a server that listens to `host`: a single address of this machine's means that one for calls too."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return cls(servers)
        return cls(servers, () if address.is_unspecified or address.is_loopback else (str(address),))

    def gathered(self, local: bool) -> list[str]:
        """The addresses that answers name; `local`: whether the server is for this machine alone."""
        if self.addresses:
            return list(self.addresses)
        need("aiortc", "webrtc", "WebRTC calls")
        from aioice.ice import get_host_addresses

        found = get_host_addresses(use_ipv4=True, use_ipv6=True)
        return [*found, "127.0.0.1"] if local or not found else found
