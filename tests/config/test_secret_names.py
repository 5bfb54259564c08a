"""Names of keys whose values are secrets, and names that only look like it."""

import pytest

from elc_bert.config.secrets import REDACTED, refuse_secrets, shown, without_secrets
from elc_bert.utils.errors import UserError

SECRET = "s3cr3t-value"
NAMES = [
    "api_key",
    "apikey",
    "accesskey",
    "access_key",
    "privatekey",
    "private_key",
    "ssh_private_key",
    "secret",
    "client_secret",
    "secretkey",
    "secret_key",
    "password",
    "DB_PASSWORD",
    "passwd",
    "auth",
    "token",
    "hub_token",
    "credential",
    "credentials",
]
OTHER_NAMES = [
    "tokenizer",
    "tokens_per_step",
    "author",
    "key",
    "keys",
    "secretary",
    "monkey",
    "mask_token_id",
]


@pytest.mark.parametrize("name", NAMES)
def test_values_of_such_keys_are_secrets_wherever_they_are(name):
    content = {"a": [{"b": 1}, {"c": {name: SECRET}}]}
    assert without_secrets(content) == {"a": [{"b": 1}, {"c": {name: REDACTED}}]}
    assert shown(f"a.{name}", SECRET) == f'"{REDACTED}"'
    with pytest.raises(UserError) as caught:
        refuse_secrets(content, "run.json: ")
    assert str(caught.value).startswith(f"run.json: a[1].c.{name}: ")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_values_of_other_keys_are_not(name):
    content = {"a": [{name: SECRET}], name: 5}
    assert without_secrets(content) == content
    assert shown(f"a.{name}", SECRET) == f'"{SECRET}"'
    refuse_secrets(content, "run.json: ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, "", True, False])
def test_a_key_without_a_value_holds_no_secret(name, value):
    assert without_secrets({name: value}) == {name: value}
    refuse_secrets({name: value}, "run.json: ")


def test_only_the_password_of_a_url_is_removed():
    url = "postgres://me:{}@host:5432/runs?x=1"
    assert without_secrets([url.format(SECRET)]) == [url.format(REDACTED)]
    assert without_secrets("https://host:80/a@b") == "https://host:80/a@b"
    with pytest.raises(UserError, match=r"^run\.json: a\[0\]: a secret"):
        refuse_secrets({"a": [url.format(SECRET)]}, "run.json: ")
