"""Methods and paths that nobody should ask for, or not with this key."""

from __future__ import annotations

import random

from mlxfleet.bench.hostile.heads import BODY
from mlxfleet.bench.hostile.shots import ADMIN_KEY, Access, Shot, bearer, once, request

METHODS = (
    *(b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"),
    *(b"PROPFIND", b"BREW", b"get", b"G" * 100, b"QUERY"),
)
KNOWN = (
    b"/v1/models",
    b"/v1/chat/completions",
    b"/v1/completions",
    b"/health",
    b"/ready",
    b"/metrics",
    b"/metrics/targets",
    b"/fleet",
    b"/fleet/requests",
    b"/ui",
    b"/openapi.json",
)
ODD = (
    b"/",
    b"*",
    b"//",
    b"//fleet",
    b"/fleet/",
    b"/FLEET",
    b"/%66leet",
    b"/fleet%00",
    b"/fleet;x=1",
    b"/./fleet",
    b"/v1/../fleet",
    b"/v1/%2e%2e/fleet",
    b"/v1%2f..%2ffleet",
    b"/v1/models/..%2f..%2ffleet",
    b"/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"/v1/models/\xc3\xa9",
    b"/v1/models/%ff%fe",
    b"/v1/models/" + b"m" * 5_000,
    b"/v1/models/a%0d%0aSet-Cookie:%20x=y",
    b"/ui/../../../../etc/passwd",
    b"/ui%5c..%5c..",
    b"/%",
    b"/%zz",
    b"/%u0041",
    b"/v1/completions?" + b"a=b&" * 1_000,
    b"/v1/completions#fragment",
    b"/v1/completions/",
    b"/v1//completions",
    b"/V1/COMPLETIONS",
    b"/v1/embeddings",
    b"/v1/engines/x/completions",
    b"/" + b"a" * 100_000,
    b"/" + b"a/" * 3_000,
    b"http://evil.example/v1/models",
    b"https://127.0.0.1:1/fleet",
    b"evil.example:443",
    b"fleet",
    b"/\x00",
    b"/a b",
    b"/admin",
    b"/admin/",
    b"/admin/drain",
    b"/admin/drain/",
    b"/admin/drain/nobody",
    b"/admin/undrain/nobody",
    b"/admin/drain/no%2fbody",
    b"/admin/drain/..%2fundrain%2fnobody",
    b"/admin/drain/%3Cscript%3E",
    b"/admin/drain/" + b"n" * 5_000,
    b"/admin/%64rain/nobody",
    b"/%61dmin/drain/nobody",
)
KEYS: dict[Access, str] = {"none": "wrong", "api": "", "admin": ADMIN_KEY}


def odd_path(rng: random.Random) -> Shot:
    """Any method on any path with any key; the drains are of nodes that do not exist."""
    method = rng.choice((rng.choice(METHODS), b"GET", b"POST"))
    target = rng.choice(KNOWN) if rng.random() < 0.4 else rng.choice(ODD)
    access: Access = rng.choice(("none", "api", "admin"))
    headers = dict([bearer(KEYS[access])]) if access != "api" else {}
    body = BODY if method == b"POST" else b""
    known = target in KNOWN and method in METHODS[:7]
    return Shot(
        kind=f"path: {method[:10].decode()}",
        pieces=once(request(body, method=method, target=target, headers=headers)),
        path=target.decode(errors="replace"),
        access=access,
        parses=known,
        complete=known,
        no_body=method == b"HEAD",
    )
