"""The header that admin paths demand where no key guards them.

A web page can make a browser send a form or a plain-text POST anywhere without asking. A header of
one's own it can send only to a server that allows it (CORS), so this one says that the request
comes from a program or from a page that may do this.
"""

from __future__ import annotations

ADMIN_HEADER = "X-Mlxfleet-Admin"
ADMIN_VALUE = "1"
ADMIN_HEADERS = {ADMIN_HEADER: ADMIN_VALUE}
