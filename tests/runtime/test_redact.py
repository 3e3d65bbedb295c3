"""Secrets leave no text; ordinary text stays as it is; and no text takes long."""

import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from prefect_dlt.redact import (
    LONGEST_SIDE,
    MARGIN,
    redact,
    redacted_traceback,
    redaction,
    secrets_in_document,
)


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
        ("mysql://u:p@ss/w@host/db", "mysql://u:***@host/db"),
        ("no answer from mysql://u:p@s/s/w@host:3306/db?x=a@b.", "no answer from mysql://u:***@host:3306/db?x=a@b."),
        ('{"url":"http://u:hunter2@x/y","mail":"me@x"}', '{"url":"http://u:***@x/y","mail":"me@x"}'),
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
        ("Incorrect API key provided: sk-proj-Ab3dEf6hIj9kLmN0pQrS_tUv.", "Incorrect API key provided: ***."),
        ("with sk-Ab3dEf6hIj9kLmN0pQrStUv1 sent", "with *** sent"),
        ("with sk-ant-api03-Ab3dEf6hIj9kLmN0pQrStUv1 sent", "with *** sent"),
        ("?k=AIzaSyD-0123456789abcdefghijklmnopqrst&x", "?k=***&x"),
        ("with dapi0123456789abcdef0123456789abcdef-2 sent", "with *** sent"),
        ("with npm_0123456789abcdefghijABCDEFGHIJ012345 sent", "with *** sent"),
        ("with hf_abcdefghijklmnopqrstuvwxyzABCDEFGH sent", "with *** sent"),
        ("with glsa_0123456789abcdefghijABCDEFGHIJ01_0a1b2c3d sent", "with *** sent"),
        ("with pypi-AgEIcHlwaS5vcmcCJGI0 sent", "with *** sent"),
        ("at https://hooks.slack.com/services/T0AB/B0CD/x9Yz8 now", "at https://hooks.slack.com/services/*** now"),
        ("url: /services/T0AB/B0CD/x9Yz8 (Caused by", "url: /services/*** (Caused by"),
        ("POST /api/webhooks/123456/ab-cdEF_01 failed", "POST /api/webhooks/*** failed"),
        ("DefaultEndpointsProtocol=https;AccountKey=a/b+c==;X=y", "DefaultEndpointsProtocol=https;AccountKey=***;X=y"),
        ("Endpoint=sb://x/;SharedAccessKey=a/b+c=", "Endpoint=sb://x/;SharedAccessKey=***"),
        ("Cookie: session=abc; csrf=def\r\nHost: x", "Cookie: ***\r\nHost: x"),
        ("Set-Cookie: sid=abc; Path=/; HttpOnly", "Set-Cookie: ***"),
        ("{'Cookie': 'session=abc', 'Host': 'x'}", "{'Cookie': '***', 'Host': 'x'}"),
        ("<RequestsCookieJar[<Cookie sid=abc for x/>]>", "<RequestsCookieJar[<Cookie sid=*** for x/>]>"),
        ("the password is hunter2, and more", "the password is ***, and more"),
        ("API key is 'hunter two'", "API key is ***"),
        ("its token was: ab12cd34", "its token was: ***"),
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
        "the password is required, the token was not found, the secret is wrong",
        "a sk-learn-something-of-a-long-name, npm_config_registry, pypi-server and hf_hub_download",
        "cookies: 3, cookie=yes, accept the cookie: please",
        "services/Team/Board/list and /services/T/B/x",
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
    "@",
    "://u:@a/",
    "://u:p@s/",
    "sk-",
    "sk-proj-",
    "sk-a",
    "pypi-",
    "AIza",
    "/services/TAA/BAA/",
    "/services/TAA",
    "cookie: ",
    "cookie: a=",
    "<Cookie a",
    "password is ",
    "token is '",
    "password is a",
    '\\"',
]


@pytest.mark.parametrize("prefix", ["", "password=", 'password="', "://u:", "bearer "])
@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(prefix: str, piece: str) -> None:
    # As long as a text can be that is looked through as a whole.
    text = prefix + piece * (2 * LONGEST_SIDE // len(piece) - len(prefix))
    started = time.process_time()

    redact(text)

    # Some hundredths of a second; reading it once per character would take minutes.
    assert time.process_time() - started < 5.0


def test_a_value_of_letters_and_digits_is_masked_inside_a_name_and_an_ordinary_word_is_not() -> None:
    assert redact("table orders_Zq8rT5vW", {"Zq8rT5vW"}) == "table orders_***"
    assert redact("postgresql://postgres@db", {"postgres"}) == "postgresql://***@db"
    assert redact("table a1b2 and a1b2_x", {"a1b2"}) == "table *** and a1b2_x"


def test_one_redaction_serves_many_texts() -> None:
    redacted = redaction({"sup3rs3cret"})

    assert [redacted(f"{n} sup3rs3cret") for n in range(3)] == ["0 ***", "1 ***", "2 ***"]


def test_of_a_very_long_text_both_ends_are_left_and_masked_and_how_much_is_missing_is_said() -> None:
    middle = "x1 y2," * 1_000_000
    started = time.process_time()

    text = redact(f"first password=hunter2 {middle} s3cr3tw0rd last", {"s3cr3tw0rd"})

    # Some hundredths of a second; looked through as a whole it would take seconds.
    assert time.process_time() - started < 1.0
    assert text.startswith("first password=*** x1 ")
    assert text.endswith("y2, *** last")
    assert "\n… 5,9" in text
    assert text.count("characters left out …\n") == 1
    assert len(text) < 2 * LONGEST_SIDE + 100


@pytest.mark.parametrize("secret", ["K7fQ92mZpL0vB", "MIIEvQIBADANBgkqhkiG9w0B\n" * 60, "a1" * MARGIN])
@pytest.mark.parametrize("known", [True, False], ids=["known", "named"])
def test_no_part_of_a_secret_survives_at_a_cut(secret: str, known: bool) -> None:
    # In each text the cuts go through the secret at another place.
    written = secret if known else json.dumps(secret)
    for offset in range(0, len(written) + 20, max(1, len(written) // 6)):
        head, tail = "a " * ((LONGEST_SIDE + offset) // 2), " b" * ((LONGEST_SIDE + offset) // 2)
        text = f"{head}password={written}\n{'c ' * 100_000}\npassword={written}{tail}"

        redacted = redact(text, {secret} if known else ())

        pieces = {secret[at : at + 8] for at in range(0, len(secret) - 8, 8)}
        assert not [piece for piece in pieces if piece in redacted]
        assert redacted.startswith("a a ")
        assert redacted.endswith(" b b")


def test_a_long_text_in_one_piece_loses_what_cannot_be_told_from_the_rest_of_a_secret() -> None:
    text = redact("word " + "a1" * 100_000)

    assert text.startswith("word a1")
    assert text.endswith("characters left out …\n")


def test_many_known_secrets_take_little_time() -> None:
    secrets = {f"secret{number}value" for number in range(2_000)}
    redacted = redaction(secrets)
    text = "nothing of interest, " * 1_500
    redacted("")
    started = time.process_time()

    assert redacted(text) == text
    assert redacted(f"{text}secret7value") == f"{text}***"

    # A tenth of a second; a pattern of all of them would take ten.
    assert time.process_time() - started < 2.0


def test_in_a_document_of_configuration_what_is_ordinary_is_no_secret() -> None:
    document = {
        "destination": {
            "postgres": {"credentials": {"host": "db-1.internal", "username": "me", "password": "hunter2", "port": 1}},
            "duckdb": {"credentials": "shop.duckdb"},
            "filesystem": {"bucket_url": "s3://bucket1/folder"},
            "bigquery": {"project_id": "north-west-0123456789", "location": "europe-west3"},
            "snowflake": {"credentials": "snowflake://me:p%40ss@account1/db"},
        },
        "sources": {"shop": {"key": "K7fQ92mZpL0vBxyz", "regions": ["north", "south"], "hooks": [{"token": "t0k3n"}]}},
    }

    assert secrets_in_document(document) == {"hunter2", "p%40ss", "p@ss", "K7fQ92mZpL0vBxyz", "t0k3n"}
