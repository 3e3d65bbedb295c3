"""Secrets leave no text; ordinary text stays as it is; and no text takes long."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dlt
import pytest
from dlt.common.configuration.utils import get_resolved_traces
from dlt.sources.credentials import ConnectionStringCredentials, GcpServiceAccountCredentials

from prefect_dlt.redact import redact, redacted_traceback, redaction, resolved_secrets


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://loader:hunter2@db:5432/shop", "postgresql://loader:***@db:5432/shop"),
        ("postgresql://loader:p@ss@db/shop?mail=a@b", "postgresql://loader:***@db/shop?mail=a@b"),
        ("postgresql://loader:p:a:ss@db/shop", "postgresql://loader:***@db/shop"),
        ("postgresql://loader:pa/ss@db/shop", "postgresql://loader:***@db/shop"),
        ("postgresql://loader:p'w\"x@db/shop", "postgresql://loader:***@db/shop"),
        ("postgresql://loader@corp:hunter2@db/shop", "postgresql://loader@corp:***@db/shop"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("'mssql+pyodbc://sa:Pa$$w0rd!@db', 'x'", "'mssql+pyodbc://sa:***@db', 'x'"),
        ("http://a:hunter2@x,http://b:hunter3@y", "http://a:***@x,http://b:***@y"),
        ("jdbc:mysql://db/shop?user=me&password=hunter2&ssl=1", "jdbc:mysql://db/shop?user=me&password=***&ssl=1"),
    ],
)
def test_the_password_of_an_address_is_masked(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_the_path_of_an_address_that_is_a_secret_is_masked_where_it_stands_alone() -> None:
    hook = "https://hooks.example/services/T000/B000/hunter2"

    assert redact("host='hooks.example': no answer from url: /services/T000/B000/hunter2 (Caused by", {hook}) == (
        "host='hooks.example': no answer from url: *** (Caused by"
    )
    assert redact("see /status", {"https://hooks.example/status"}) == "see /status"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password=hunter2", "password=***"),
        ("Password: hunter2, and more", "Password: ***, and more"),
        ("host=db password='hun ter2' user=me", "host=db password=*** user=me"),
        ("host=db password='hun\\'ter2' user=me", "host=db password=*** user=me"),
        ("DRIVER=x;PWD=hunter2;SERVER=db", "DRIVER=x;PWD=***;SERVER=db"),
        ("DRIVER=x;PWD={hun;ter2};SERVER=db", "DRIVER=x;PWD=***;SERVER=db"),
        ("AccountName=me;AccountKey=abc==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("Config(password=hunter2, user=me)", "Config(password=***, user=me)"),
        ("Config(password=hun,ter)2,user=me)", "Config(password=***,user=me)"),
        ("{'password': 'hun\\'ter2', 'user': 'me'}", "{'password': ***, 'user': 'me'}"),
        ('{"password": "hun\\"ter 2", "user": "me"}', '{"password": ***, "user": "me"}'),
        (json.dumps(json.dumps({"password": "hun ter2", "x": 1})), '"{\\"password\\": ***, \\"x\\": 1}"'),
        ('api_key = "hunter 2"  # the key', "api_key = ***  # the key"),
        ('private_key = """hun\nter"2"""\nuser = 1', "private_key = ***\nuser = 1"),
        ("secret_token = '''hun\nter'2'''\nuser = 1", "secret_token = ***\nuser = 1"),
        ("password: 'hunter 2\nuser: me", "password: ***\nuser: me"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+x next", "AWS_SECRET_ACCESS_KEY=*** next"),
        ("DESTINATION__POSTGRES__CREDENTIALS__PASSWORD=hunter2", "DESTINATION__POSTGRES__CREDENTIALS__PASSWORD=***"),
        ("dlt --api-token hunter2 --user me", "dlt --api-token *** --user me"),
        ("GET /blob?sig=a%2Fb&sv=1&X-Amz-Signature=abc", "GET /blob?sig=***&sv=1&X-Amz-Signature=***"),
        ("x-api-key: 123abc", "x-api-key: ***"),
        ("Authorization: Bearer abcdefgh", "Authorization: ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': ***}"),
        ("sent Bearer abc123def456 along", "sent Bearer *** along"),
        ("key AKIAIOSFODNN7EXAMPLE is off", "key *** is off"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_1", "got ***"),
        ("clone with ghp_0123456789abcdefghij0123", "clone with ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----\nend", "***\nend"),
        ("cut off: -----BEGIN PRIVATE KEY-----\nMIIabc", "cut off: ***"),
    ],
)
def test_a_value_that_its_name_or_shape_gives_away_is_masked(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,204 rows into shop.orders in 2.5 s",
        'FATAL: password authentication failed for user "me"',
        "http://localhost:4200/runs and mail to me@example.com",
        "https://host:8080/users/me@example.com",
        "postgresql://loader@db:5432/shop",
        "s3://bucket/folder/a@b.csv",
        "if token == expected and token != other:",
        "select password::text from users",
        "{'password': {'name': 'password', 'data_type': 'text'}}",
        "password=None, token: null, secret=<secret>",
        "max_tokens=100 token_count=5 tokenizer=fast",
        "primary_key: id, hash_key=5, keyword: x, sort_key='day'",
        "a basic understanding of bearer bonds",
        "Enter the password:\nTraceback (most recent call last):",
        "config: x, design=y, secretary: Bob",
        "10:30:45 | WARNING | load took 3:02",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_text_is_not_redacted_further_the_second_time() -> None:
    once = redact("postgresql://me:hunter2@db and password=hunter2, {'token': 'x y'}")

    assert redact(once) == once


@pytest.mark.parametrize("secret", ["hunter2", "p|w`x y", "a'b\"c", "line one\nline two", "ünï/côdé+&", "back\\slash"])
@pytest.mark.parametrize(
    "write", [str, repr, json.dumps, lambda text: quote(text, safe=""), lambda text: repr([text])], ids=range(5)
)
def test_a_known_secret_is_masked_however_it_is_written(secret: str, write: Any) -> None:
    text = f"before {write(secret)} after"

    redacted = redact(text, [secret])

    assert "***" in redacted
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")
    assert write(secret).strip("[]'\"") not in redacted


def test_a_short_secret_is_masked_as_a_word_and_left_inside_other_words() -> None:
    assert redact("postgres at postgresql:5432 as 'postgres'", ["postgres"]) == "*** at postgresql:5432 as '***'"


def test_a_long_secret_is_masked_inside_other_words_too() -> None:
    assert redact("xK7fQ92mZpL0vBy", ["K7fQ92mZpL0vB"]) == "x***y"


def test_a_value_too_short_to_be_told_from_ordinary_text_is_left() -> None:
    assert redact("to be or not", ["be", ""]) == "to be or not"


def test_a_secret_that_holds_another_is_masked_as_a_whole() -> None:
    assert redact("see hunter2-and-more", ["hunter2", "hunter2-and-more"]) == "see ***"


def test_a_traceback_is_masked_with_all_that_caused_it() -> None:
    def fail() -> None:
        try:
            raise ConnectionError("no answer from postgresql://me:hunter2@db")
        except ConnectionError as cause:
            raise RuntimeError("gave up with K7fQ92mZpL0vB") from cause

    with pytest.raises(RuntimeError) as caught:
        fail()

    text = redacted_traceback(caught.value, ["K7fQ92mZpL0vB"])
    assert "postgresql://me:***@db" in text
    assert "gave up with ***" in text
    assert "K7fQ" not in text


HOSTILE = [
    "a",
    "a-",
    "://",
    "://a:b/",
    "://u:a@",
    "password",
    "password ",
    "password=",
    'password="',
    "password='''",
    "password=a,",
    "password: token ",
    "--password ",
    "--",
    "secret_key_id",
    "authorization: bearer ",
    "bearer ",
    "eyJ",
    "eyJaaaaaaaaa.",
    "-----BEGIN PRIVATE KEY-----",
    "ghp_",
    "=",
    " ",
    '\\"',
]


@pytest.mark.parametrize("prefix", ["", "password=", 'password="', "://u:", "bearer "])
@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(prefix: str, piece: str) -> None:
    text = prefix + piece * (60_000 // len(piece))
    started = time.process_time()

    redact(text)

    # Some hundredths of a second; reading it once per character would take minutes.
    assert time.process_time() - started < 5.0


@pytest.fixture
def _resolving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.chdir(tmp_path)
    get_resolved_traces().clear()
    yield
    get_resolved_traces().clear()


@pytest.mark.usefixtures("_resolving")
def test_what_dlt_resolved_as_a_secret_is_known_and_what_is_no_secret_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "K7fQ92mZpL0vB")
    monkeypatch.setenv("REGION", "north-west")

    @dlt.source
    def shop(api_token: str = dlt.secrets.value, region: str = dlt.config.value) -> Any:
        return dlt.resource([api_token, region], name="orders")

    shop()

    assert resolved_secrets() == {"K7fQ92mZpL0vB"}


@pytest.mark.usefixtures("_resolving")
def test_of_an_address_only_the_password_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS", "postgresql://loader:p%40ss@db:5432/shop?sslpassword=hunter2")

    @dlt.source
    def shop(credentials: ConnectionStringCredentials = dlt.secrets.value) -> Any:
        return dlt.resource([str(credentials)], name="orders")

    shop()

    assert resolved_secrets() == {"p%40ss", "p@ss", "hunter2"}


@pytest.mark.usefixtures("_resolving")
def test_the_file_of_a_duckdb_database_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DESTINATION__DUCKDB__CREDENTIALS", "data.duckdb")
    pipeline = dlt.pipeline("shop", destination="duckdb", pipelines_dir=str(tmp_path))
    with pipeline.sql_client():
        assert "data.duckdb" not in resolved_secrets()


@pytest.mark.usefixtures("_resolving")
def test_of_credentials_in_json_what_is_named_a_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    account = {
        "type": "service_account",
        "project_id": "north-west",
        "client_email": "loader@example.com",
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----\n",
    }
    monkeypatch.setenv("CREDENTIALS", json.dumps(account))

    @dlt.source
    def shop(credentials: GcpServiceAccountCredentials = dlt.secrets.value) -> Any:
        return dlt.resource([str(credentials)], name="orders")

    shop()

    secrets = resolved_secrets()
    assert account["private_key"] in secrets
    assert secrets.isdisjoint({"north-west", "loader@example.com"})


@pytest.mark.usefixtures("_resolving")
def test_every_text_in_a_secret_that_is_a_dictionary_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNTS", '{"first": "hunter-one", "more": ["hunter-two", 3]}')

    @dlt.source
    def shop(accounts: dict[str, Any] = dlt.secrets.value) -> Any:
        return dlt.resource([accounts], name="orders")

    shop()

    assert {"hunter-one", "hunter-two"} <= resolved_secrets()


def test_a_value_of_letters_and_digits_is_masked_inside_a_name_and_an_ordinary_word_is_not() -> None:
    assert redact("table orders_Zq8rT5vW", {"Zq8rT5vW"}) == "table orders_***"
    assert redact("postgresql://postgres@db", {"postgres"}) == "postgresql://***@db"
    assert redact("table a1b2 and a1b2_x", {"a1b2"}) == "table *** and a1b2_x"


def test_one_redaction_serves_many_texts() -> None:
    redacted = redaction({"sup3rs3cret"})

    assert [redacted(f"{n} sup3rs3cret") for n in range(3)] == ["0 ***", "1 ***", "2 ***"]
