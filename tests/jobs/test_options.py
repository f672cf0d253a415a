"""How options become settings: what the environment adds, and what is refused."""

import pytest

from patchlake.jobs.options import read_settings
from patchlake.pipeline.errors import ConfigError

_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch):
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_sdks_variables_stand_where_nothing_is_set(monkeypatch):
    assert read_settings(None, None, {}).storage.endpoint is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    storage = read_settings(None, None, {}).storage
    assert (storage.endpoint, storage.region) == ("http://a:1", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://b:2")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    storage = read_settings(None, ["storage.retries=3"], {}).storage
    assert (storage.endpoint, storage.region, storage.retries) == ("http://b:2", "eu-west-2", 3)
    storage = read_settings(None, ["storage.endpoint=http://c:3"], {}).storage
    assert (storage.endpoint, storage.region) == ("http://c:3", "eu-west-2")


def test_credentials_in_what_is_written_down_are_refused_and_not_repeated(monkeypatch):
    prefix = 'image.uri_prefixes=["s3://KEY:SECRET@bucket/x"]'
    with pytest.raises(ConfigError, match="carries credentials") as raised:
        read_settings(None, [prefix], {})
    assert "SECRET" not in str(raised.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://KEY:SECRET@host")
    with pytest.raises(ConfigError, match="without user or password") as raised:
        read_settings(None, None, {})
    assert "SECRET" not in str(raised.value)
