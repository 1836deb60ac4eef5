"""Credentials for registries: those of ``docker login``, credential helpers included. They are read, never told."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import parse_http_list, parse_keqv_list

from medflow.container.names import is_loopback
from medflow.errors import ServingError

TIMEOUT = (10, 60)
"""Seconds to connect and between bytes."""


@dataclass(frozen=True)
class Login:
    """What a registry is told; all None where nobody logged in."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    """An identity token, which stands for user and password."""


def login_of(host: str) -> Login:
    """As Docker finds it: DOCKER_CONFIG or ~/.docker/config.json. Raises ServingError where a helper fails."""
    from docker import auth, errors

    try:
        found: dict[str, Any] = auth.load_config().resolve_authconfig(host) or {}
    except (errors.DockerException, OSError) as error:
        raise ServingError(
            f"Docker's credentials for {host} cannot be read: {type(error).__name__}", hint=f"docker login {host}"
        ) from error
    known = {key.lower(): value for key, value in found.items()}
    return Login(known.get("username"), known.get("password"), known.get("identitytoken"))


def authorization(challenge: str, login: Login, host: str) -> str | None:
    """The header that answers a registry's ``WWW-Authenticate`` (RFC 9110, Docker's token specification)."""
    import requests

    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() == "basic":
        if login.user is None:
            return None
        return f"Basic {base64.b64encode(f'{login.user}:{login.password}'.encode()).decode()}"
    if scheme.lower() != "bearer":
        return None
    asked = parse_keqv_list(parse_http_list(rest))
    realm = urlsplit(asked.get("realm", ""))
    if realm.scheme != "https" and not is_loopback(realm.netloc):
        raise ServingError(f"{host} asks for credentials at an address without TLS", hint="ask who runs the registry")
    try:
        return _bearer(realm.geturl(), asked.get("service", ""), asked.get("scope", ""), login)
    except requests.RequestException as error:
        raise ServingError(
            f"the token server of {host} does not answer: {type(error).__name__}", hint="try again, or ask who runs it"
        ) from error


def _bearer(realm: str, service: str, scope: str, login: Login) -> str | None:
    """A token for one or several scopes; without a login, an anonymous one."""
    import requests

    if login.token:
        form = {"grant_type": "refresh_token", "refresh_token": login.token, "client_id": "medflow"}
        response = requests.post(realm, data={**form, "service": service, "scope": scope}, timeout=TIMEOUT)
    else:
        pair = (login.user, login.password or "") if login.user else None
        asked = {"service": service, "scope": scope.split()}
        response = requests.get(realm, params=asked, auth=pair, timeout=TIMEOUT)
    if response.status_code != 200:
        return None
    body = response.json()
    token = body.get("token") or body.get("access_token")
    return f"Bearer {token}" if token else None
