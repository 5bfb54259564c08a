"""Secrets in a configuration are refused, and those that early versions saved are not shown."""

import json

import pytest

from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.reader import load_config
from elc_bert.config.secrets import REDACTED, refuse_secrets, without_secrets
from elc_bert.utils.errors import UserError
from tests.support.launching import write_config

SECRET = "s3cr3t-value"


@pytest.fixture
def file(tmp_path):
    return write_config(tmp_path, tmp_path / "data", tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("override", "key", "advice"),
    [
        (f"comet.api_key={SECRET}", "comet.api_key", "give it in COMET_API_KEY"),
        (f"nebula.access_key={SECRET}", "nebula.access_key", "give it in an environment variable"),
        (f"wandb.API_TOKEN={SECRET}", "wandb.API_TOKEN", "give it in an environment variable"),
        (
            f'aio.list=[{{"password": "{SECRET}"}}]',
            "aio.list[0].password",
            "give it in an environment variable",
        ),
        (f"wandb.project=https://me:{SECRET}@host/x", "wandb.project", "give it in an environment variable"),
        ("comet.api_key=12345", "comet.api_key", "give it in COMET_API_KEY"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(file, override, key, advice):
    config = load_config(file, [override])
    for check in (refuse_secrets, check_deepspeed_sections):
        with pytest.raises(UserError) as caught:
            check(config)
        message = str(caught.value)
        assert message.startswith(f"{file}: {key}: a secret would be copied into config.json")
        assert message.endswith(advice)
        assert SECRET not in message
        assert "12345" not in message


def test_other_keys_are_no_secrets(file):
    changes = ["comet.api_key=null", "comet.api_key=", "comet.experiment_key=abc", "wandb.project=a@b"]
    for override in changes:
        refuse_secrets(load_config(file, [override]))
    refuse_secrets(
        load_config(file, ["wandb.group=https://host:8080/x@y", "aio.tokens=5", "aio.token_count=5"])
    )


def test_saved_secrets_are_removed():
    content = {
        "comet": {"api_key": SECRET, "project": "x", "enabled": True},
        "list": [{"password": 7}, f"http://u:{SECRET}@h/p", 3, None],
        "token": None,
    }
    before = json.dumps(content)
    assert without_secrets(content) == {
        "comet": {"api_key": REDACTED, "project": "x", "enabled": True},
        "list": [{"password": REDACTED}, f"http://u:{REDACTED}@h/p", 3, None],
        "token": None,
    }
    assert json.dumps(content) == before
