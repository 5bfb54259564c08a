"""Secrets do not belong in a configuration: it is copied into checkpoints, logs and reports."""

import json
import re
from collections.abc import Iterator
from typing import Any

from elc_bert.utils.errors import UserError

REDACTED = "(removed)"
"""Text in place of a secret."""
VARIABLES = {"comet.api_key": "COMET_API_KEY"}
"""Environment variables that the packages read in place of a key."""
_NAME = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|private_?key|secret(?:_?key)?|password|passwd|auth|token|credentials?)$",
    re.IGNORECASE,
)
"""Names of keys whose value is a secret."""
_PASSWORD_IN_URL = re.compile(r"(\w+://?[^/@\s:]*):[^/@\s]+@")
"""URL with a password; as a path, it has one slash only."""


def refuse_secrets(content: Any, origin: str) -> None:
    """Check that no value of a configuration is a secret.

    Args:
        content: The configuration, as JSON values.
        origin: Beginning of the message, such as the name of the file.

    Raises:
        UserError: A value is one. The message does not contain it.
    """
    for key in _secret_keys(content):
        variable = VARIABLES.get(key, "an environment variable")
        raise UserError(
            f"{origin}{key}: a secret would be copied into config.json and every checkpoint; remove "
            f"it here and give it in {variable}"
        )


def without_secrets(content: Any) -> Any:
    """Return a copy of a configuration in which ``REDACTED`` stands in place of secrets.

    Early versions have saved secrets in ``config.json`` and in checkpoints.
    """
    if isinstance(content, dict):
        return {
            key: REDACTED if _is_secret(key, value) else without_secrets(value)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [without_secrets(value) for value in content]
    return _PASSWORD_IN_URL.sub(rf"\1:{REDACTED}@", content) if isinstance(content, str) else content


def shown(key: str, value: Any) -> str:
    """Return the value of a key as JSON for a message, or ``REDACTED`` if it is a secret."""
    _, value = without_secrets({key.rpartition(".")[2]: value}).popitem()
    return json.dumps(value, default=str)


def _secret_keys(content: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys of secrets."""
    if isinstance(content, dict):
        for name, value in content.items():
            below = f"{key}.{name}" if key else str(name)
            if _is_secret(name, value):
                yield below
            else:
                yield from _secret_keys(value, below)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _secret_keys(value, f"{key}[{index}]")
    elif isinstance(content, str) and _PASSWORD_IN_URL.search(content):
        yield key


def _is_secret(name: Any, value: Any) -> bool:
    return isinstance(name, str) and _NAME.search(name) is not None and value not in (None, "", True, False)
