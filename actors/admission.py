# SPDX-License-Identifier: Apache-2.0
"""Checks before `ray.init` that a Ray cluster exists and admits this process.

Ray's own attempt takes 20 to 30 s, cannot be interrupted, and gives the same advice for every cause.

    address ──resolve──► Head ──check_admitted──► token mode of this process ──► ray.init
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import grpc
from ray._private import services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from actors.config import AUTO, LOCAL
from longmem.errors import ClusterError

CLIENT = "ray://"
CONNECT_S = 5.0
"""Timeout of a head's answer, in seconds."""

HEALTH = "/grpc.health.v1.Health/Check"
"""gRPC method that GCS and raylet answer without a token."""
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""gRPC method of the GCS that needs the token of a cluster with token authentication."""
CLIENT_INFO = "/ray.rpc.RayletDriver/ClusterInfo"
"""gRPC method of Ray's client server (`ray://`) that needs that token too."""

MODE = "RAY_AUTH_MODE"
USER_MODE = os.environ.get(MODE, "").lower()
"""Mode set by the user, read before this process or Ray sets one: `token`, `disabled`, or nothing."""

_tokens_used = False

TOKEN_PLACES = "RAY_AUTH_TOKEN, the file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
OR_ELSE = "or use --address local to start a cluster here, or --address none to run without Ray"


@dataclass(frozen=True)
class Head:
    """Address of a cluster to join, and its source."""

    address: str
    """`host:port` of the GCS, or `ray://host:port`."""
    source: Literal["named", "environment", "found", "recorded"]
    """`found`: its processes run on this machine. `recorded`: a file of Ray names it, and it may have ended."""

    @property
    def target(self) -> str:
        """`host:port` for a gRPC channel."""
        return self.address.removeprefix(CLIENT)

    @property
    def is_client(self) -> bool:
        """True for the address of Ray's client server, which runs the driver's half on the cluster."""
        return self.address.startswith(CLIENT)

    def __str__(self) -> str:
        reasons = {"environment": " (named by RAY_ADDRESS)", "found": " (found on this machine)"}
        return self.address + reasons.get(self.source, "")


def resolve(address: str) -> Head | None:
    """Return the cluster that an address names, running or not; None when `auto` finds none.

    Raises ClusterError for a malformed address.
    """
    if address != AUTO:
        return Head(_checked(address, "the address"), "named")
    named = os.environ.get("RAY_ADDRESS", "")
    if named == LOCAL:
        return None
    if named not in ("", AUTO):
        return Head(_checked(named, "RAY_ADDRESS"), "environment")
    services.find_gcs_addresses.cache_clear()
    # raised when no cluster runs on this machine and none is recorded
    with suppress(ConnectionError):
        found = str(services.get_ray_address_from_environment(AUTO, None))
        return Head(found, "found" if found in services.find_gcs_addresses() else "recorded")
    return None


def check_admitted(head: Head) -> None:
    """Check that the head admits this process, and set Ray's token mode to that of the cluster.

    Ray turns tokens on only for `auto` and only when a token is available, and does not look at the cluster. It then
    joins a cluster without tokens, and every actor dies without a message. For `host:port` it never sends a token, and
    a cluster with tokens refuses it. Raises ClusterError within a few times CONNECT_S.
    """
    _check_port(head)
    method = CLIENT_INFO if head.is_client else ALIVE
    refused = _refuses(head, method, None)
    if not refused:
        if USER_MODE == "token":
            raise ClusterError(
                f"the Ray cluster at {head} has no token authentication and {MODE}=token asks for it: its workers "
                f"could not answer; unset {MODE}, or start the cluster with {MODE}=token"
            )
        if _tokens_used:
            raise ClusterError(
                f"the Ray cluster at {head} has no token authentication, and this process has used a cluster that has: "
                "Ray keeps tokens on, and its workers could not answer; join it from another process"
            )
        _set_mode("disabled")
        return
    if USER_MODE == "disabled":
        raise ClusterError(
            f"the Ray cluster at {head} asks for a token, and {MODE}=disabled keeps this process from sending "
            f"one; unset {MODE}"
        )
    token = _token()
    if not token:
        raise ClusterError(
            f"the Ray cluster at {head} asks for a token and there is none here; put the cluster's token into "
            f"{TOKEN_PLACES} (`ray get-auth-token` prints it where the cluster was started), {OR_ELSE}"
        )
    if _refuses(head, method, token):
        raise ClusterError(
            f"the Ray cluster at {head} refuses the token that is here; put the token of that cluster into "
            f"{TOKEN_PLACES} (`ray get-auth-token` prints it where the cluster was started), {OR_ELSE}"
        )
    note_tokens()
    _set_mode("token")


def note_tokens() -> None:
    """Record that Ray's servers in this process require tokens from now on, even if the mode changes."""
    global _tokens_used
    _tokens_used = True


def _checked(address: str, what: str) -> str:
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{what} {address!r} is that of a dashboard; jobs join a cluster at HOST:6379, or at ray://HOST:10001 from "
            f"another network, {OR_ELSE}"
        )
    host, separator, port = address.removeprefix(CLIENT).rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(
            f"{what} {address!r} is not the address of a cluster: expected HOST:PORT or ray://HOST:PORT, {OR_ELSE}"
        )
    return address


def _check_port(head: Head) -> None:
    """Raise ClusterError if the port is closed, or if the head accepts connections without answering.

    The kernel accepts connections for a stopped process.
    """
    host, _, port = head.target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        answers(head.target)
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {head.address!r} ({error}); check the address with `ray status`, {OR_ELSE}"
        ) from error


def answers(target: str) -> None:
    """Return after any gRPC answer, including an error status. Raises TimeoutError after CONNECT_S without one."""
    # bypass proxies, as Ray does
    with _channel(target) as channel:
        try:
            channel.unary_unary(HEALTH)(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"it accepts connections and does not respond for {CONNECT_S:g} s") from error


def _refuses(head: Head, method: str, token: str | None) -> bool:
    """Return whether the head refuses a call with this token. Raises ClusterError if it is not a Ray head."""
    metadata = [("client_id", uuid4().hex)] if head.is_client else []
    if token is not None:
        metadata.append(("authorization", f"Bearer {token}"))
    with _channel(head.target) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=CONNECT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return True
            # with a valid token, the client server answers NOT_FOUND to an unknown client id
            if head.is_client and error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                expected = "client server" if head.is_client else "GCS"
                other = "the GCS, write HOST:PORT" if head.is_client else f"a client server, write {CLIENT}HOST:PORT"
                raise ClusterError(
                    f"the server at {head.address!r} is not the {expected} of a Ray head; for {other}, {OR_ELSE}"
                ) from error
            raise ClusterError(
                f"the server at {head.address!r} does not answer as a Ray head ({error.code().name}: "
                f"{error.details()}); check the address with `ray status`, {OR_ELSE}"
            ) from error
    return False


def _channel(target: str) -> grpc.Channel:
    return grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])


def _token() -> str:
    loader = AuthenticationTokenLoader.instance()
    # the token file may have been written since it was last read
    loader.reset_cache()
    try:
        return str(loader.get_raw_token(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise ClusterError(f"the token for the Ray cluster cannot be read: {error.message}") from error


def _set_mode(mode: str) -> None:
    """Set the token mode of this process and its children, unless the user has set one."""
    if USER_MODE:
        return
    os.environ[MODE] = mode
    # Ray reads the environment at import and caches it
    Config.initialize("")


def reset_token_mode() -> None:
    """Restore Ray's default mode, which turns tokens on for a cluster that it starts here."""
    if USER_MODE != "disabled":
        note_tokens()
    if not USER_MODE and os.environ.pop(MODE, None) is not None:
        Config.initialize("")
