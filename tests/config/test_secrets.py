"""Secrets in a configuration are refused, and those that early versions saved are not shown."""

import json

import pytest

from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.reader import load_config
from elc_bert.config.secrets import REDACTED, without_secrets
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
        (f"wandb.project=https://me:{SECRET}@host/x", "wandb.project", "give it in an environment variable"),
        (
            f'elc_bert.data.train=[{{"path": "s3://me:{SECRET}@host/x"}}]',
            "elc_bert.data.train",
            "give it in an environment variable",
        ),
    ],
)
def test_a_secret_is_refused_and_not_repeated(file, override, key, advice):
    config = load_config(file, [override])
    with pytest.raises(UserError) as caught:
        check_deepspeed_sections(config)
    message = str(caught.value)
    assert message.startswith(f"{file}: {key}: a secret would be copied into config.json")
    assert message.endswith(advice)
    assert SECRET not in message


@pytest.mark.parametrize("value", ["12345", '["s3cr3t-value"]'])
def test_a_secret_of_the_wrong_type_is_not_repeated(file, value):
    with pytest.raises(UserError, match=r'comet\.api_key = "\(removed\)": must be') as caught:
        load_config(file, [f"comet.api_key={value}"])
    assert value.strip('[]"') not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["comet.api_key=null", "comet.experiment_key=abc", "wandb.project=a@b", "wandb.group=https://h:80/x@y"],
)
def test_other_values_are_no_secrets(file, override):
    check_deepspeed_sections(load_config(file, [override]))


def test_saved_secrets_are_removed():
    content = {
        "comet": {"api_key": SECRET, "project": "x", "enabled": True},
        "list": [{"password": 7}, f"http://u:{SECRET}@h/p", 3, None],
        "token": None,
        "tokens": 5,
        "API_TOKEN": SECRET,
        "access_key": SECRET,
        "max_token_count": 5,
    }
    before = json.dumps(content)
    assert without_secrets(content) == {
        "comet": {"api_key": REDACTED, "project": "x", "enabled": True},
        "list": [{"password": REDACTED}, f"http://u:{REDACTED}@h/p", 3, None],
        "token": None,
        "tokens": 5,
        "API_TOKEN": REDACTED,
        "access_key": REDACTED,
        "max_token_count": 5,
    }
    assert json.dumps(content) == before
