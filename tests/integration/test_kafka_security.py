"""Passwords, tokens and certificates, against a broker that insists on them."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from schemas.config import Config, KafkaConfig
from schemas.errors import BrokerError, ConfigError
from streamer.kafka_clients import open_admin, open_consumer
from streamer.membership import KafkaGroup
from streamer.sources.kafka import KafkaSource
from tests.conftest import kafka_config
from tests.kafka.broker import Broker, create_topics
from tests.kafka.certificates import Authority
from tests.kafka.members import Notes
from tests.kafka.records import items, produce, read_to_end, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN, SCRAM, KEY_PASSWORD = "open sesame", "shut-sesame", "key of keys"


class Doors(NamedTuple):
    """Configurations that get into one broker: one by password or token, one by certificate."""

    plain: KafkaConfig
    scram: KafkaConfig
    token: KafkaConfig
    certificate: KafkaConfig
    stranger: tuple[Path, Path]
    open: str


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    from tests.conftest import give_up
    from tests.kafka.jars import NoBrokerError

    if shutil.which("openssl") is None:
        give_up("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    certificate, key = authority.issue("broker")
    store = folder / "broker.store"
    store.write_text(key.read_text() + certificate.read_text())
    sasl, module = "listener.name.sasl_ssl", "org.apache.kafka.common.security"
    settings = {
        "listeners": "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},"
        "SASL_SSL://127.0.0.1:{spare[0]},SSL://127.0.0.1:{spare[1]}",
        "advertised.listeners": "PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{spare[0]},SSL://127.0.0.1:{spare[1]}",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
        f"{sasl}.plain.sasl.jaas.config": f'{module}.plain.PlainLoginModule required user_alice="{PLAIN}";',
        f"{sasl}.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        f"{sasl}.oauthbearer.sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        "ssl.keystore.location": str(store),
        "ssl.keystore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate),
        "ssl.truststore.type": "PEM",
        "listener.name.ssl.ssl.client.auth": "required",
    }
    scram_user = ["--add-scram", f"SCRAM-SHA-512=[name=alice,password={SCRAM}]"]
    try:
        broker = Broker(settings=settings, format_with=scram_user)
    except NoBrokerError as error:
        give_up(str(error))
    with broker:
        by_sasl = kafka_config(f"127.0.0.1:{broker.spare_ports[0]}").model_copy(
            update={"security_protocol": "SASL_SSL", "ssl_cafile": authority.certificate, "connect_timeout_s": 30.0}
        )
        ours, our_key = authority.issue("client", password=KEY_PASSWORD)
        yield Doors(
            plain=by_sasl.model_copy(
                update={"sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": SecretStr(PLAIN)}
            ),
            scram=by_sasl.model_copy(
                update={"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "alice", "sasl_password": SecretStr(SCRAM)}
            ),
            token=by_sasl.model_copy(update={"sasl_mechanism": "OAUTHBEARER", "sasl_token_provider": f"{HERE}:token"}),
            certificate=by_sasl.model_copy(
                update={
                    "bootstrap_servers": f"127.0.0.1:{broker.spare_ports[1]}",
                    "security_protocol": "SSL",
                    "ssl_certfile": ours,
                    "ssl_keyfile": our_key,
                    "ssl_key_password": SecretStr(KEY_PASSWORD),
                }
            ),
            stranger=Authority(folder, "stranger").issue("client"),
            open=broker.bootstrap,
        )


HERE = __name__


def token(**claims: Any) -> str:
    """Signed by nobody, as the broker's own validator wants it."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': 'alice', 'iat': now - 60, 'exp': now + 600} | claims)}."


def expired_token() -> str:
    return token(iat=0, exp=1)


def no_token() -> None:
    return None


def failing_token() -> str:
    raise RuntimeError("the secret is hunter2")


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("door", ["plain", "scram", "token", "certificate"])
def test_the_right_credentials_read_write_and_join(doors: Doors, door: str) -> None:
    names = kafka_config("")
    config = getattr(doors, door).model_copy(
        update={name: getattr(names, name) for name in ("items_topic", "engagements_topic", "group_id")}
    )
    create_topics(doors.open, {config.items_topic: 1, config.engagements_topic: 1}, retention_ms="-1")
    with capture_logs() as logs:
        produce(config, config.items_topic, [(0, b"k", b"v")])
        with closing(KafkaSource(Config(kafka=config), 0)) as source:
            assert read_to_end(source)[items(config)] == [(0, b"k", b"v")]
        notes = Notes()
        with closing(KafkaGroup(config, notes, "one")) as group:
            until(lambda: group.turn(0.1) is None and notes.now() == {0}, "the shard")
    assert not any(secret in str(logs) for secret in (PLAIN, SCRAM, KEY_PASSWORD, token()[:20]))


@pytest.mark.kafka
@pytest.mark.slow
def test_a_password_file_holds_the_password_and_a_newline(doors: Doors, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SCRAM}\n")
    open_admin(doors.scram.model_copy(update={"sasl_password": None, "sasl_password_file": file})).close()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("door", ["plain", "scram"])
@pytest.mark.parametrize("how", ["variable", "file"])
def test_a_wrong_password_is_refused_without_being_printed(doors: Doors, door: str, how: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"sasl_password": SecretStr("wrong horse")}
    if how == "file":
        (tmp_path / "password").write_text("wrong horse")
        wrong = {"sasl_password": None, "sasl_password_file": tmp_path / "password"}
    given = "sasl_password_file" if how == "file" else "sasl_password"
    with (
        capture_logs() as logs,
        pytest.raises(BrokerError, match=rf"refused alice: .*sasl_username and {given}$") as refused,
    ):
        open_consumer(getattr(doors, door).model_copy(update=wrong))
    assert "wrong horse" not in f"{refused.value!r} {refused.value.__cause__!r} {logs}"


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "why"),
    [
        ("expired_token", "invalid_token|expired"),
        ("no_token", "returned NoneType"),
        ("failing_token", "raised RuntimeError"),
    ],
)
def test_a_token_that_is_none_is_refused_without_being_printed(doors: Doors, provider: str, why: str) -> None:
    config = doors.token.model_copy(update={"sasl_token_provider": f"{HERE}:{provider}"})
    with pytest.raises(
        BrokerError, match=rf"refused the token of .*:{provider}: .*({why}).*check kafka\.sasl_token"
    ) as e:
        open_consumer(config)
    assert "hunter2" not in str(e.value)
    assert expired_token() not in str(e.value)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("whose", ["nobody's", "a stranger's"])
def test_a_broker_that_wants_another_certificate_refuses_us(doors: Doors, whose: str) -> None:
    pair: tuple[Path | None, Path | None] = (None, None) if whose == "nobody's" else doors.stranger
    config = doors.certificate.model_copy(
        update={"ssl_certfile": pair[0], "ssl_keyfile": pair[1], "ssl_key_password": None}
    )
    with pytest.raises(BrokerError, match=r"refused us: .*kafka\.ssl_certfile and ssl_keyfile"):
        open_consumer(config)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_certificate_of_an_unknown_authority_is_not_trusted(doors: Doors) -> None:
    with pytest.raises(BrokerError, match=r"not trusted: .*certificate.*ssl_cafile"):
        open_consumer(doors.plain.model_copy(update={"ssl_cafile": None}))


@pytest.mark.kafka
@pytest.mark.slow
def test_a_certificate_for_another_name_is_not_trusted(doors: Doors) -> None:
    by_name = doors.plain.bootstrap_servers.replace("127.0.0.1", "localhost")
    assert socket.gethostbyname("localhost") == "127.0.0.1"
    with pytest.raises(BrokerError, match=r"not trusted: .*localhost"):
        open_consumer(doors.plain.model_copy(update={"bootstrap_servers": by_name}))


@pytest.mark.kafka
@pytest.mark.slow
def test_the_wrong_protocol_is_named_as_a_possible_cause(doors: Doors) -> None:
    with pytest.raises(BrokerError, match="security_protocol right"):
        open_consumer(doors.plain.model_copy(update={"connect_timeout_s": 1.0, "security_protocol": "PLAINTEXT"}))


@pytest.mark.parametrize("missing", ["sasl_mechanism", "sasl_username", "sasl_password"])
def test_sasl_without_credentials_is_a_configuration_error(missing: str) -> None:
    whole = {"sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": SecretStr("secret")}
    with pytest.raises(ConfigError, match="sasl_mechanism"):
        open_consumer(KafkaConfig(security_protocol="SASL_SSL", **whole | {missing: None}))


def test_two_passwords_are_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sasl_password and kafka\.sasl_password_file are both set"):
        open_consumer(with_password(sasl_password=SecretStr("secret"), sasl_password_file=tmp_path / "password"))


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"\n", "is empty"), (b"\xffs3cret", "UTF-8")])
def test_a_password_file_without_password_is_a_configuration_error(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"kafka\.sasl_password_file {re.escape(str(file))} .*{why}") as refused:
        open_consumer(with_password(sasl_password_file=file))
    assert "s3cret" not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize(
    ("provider", "why"),
    [
        (None, "module:callable"),
        ("no_such_module:token", "cannot be imported: ModuleNotFoundError"),
        ("json:no_such_function", "cannot be imported: AttributeError"),
        ("json:__name__", "is not a function"),
    ],
)
def test_a_token_provider_that_is_none_is_a_configuration_error(provider: str | None, why: str) -> None:
    config = KafkaConfig(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", sasl_token_provider=provider)
    with pytest.raises(ConfigError, match=rf"kafka\.sasl_token_provider.*{why}"):
        open_consumer(config)


@pytest.mark.parametrize("key", ["ssl_cafile", "ssl_certfile"])
def test_a_certificate_file_that_is_none_is_a_configuration_error(tmp_path: Path, key: str) -> None:
    file = tmp_path / "authority.pem"
    with pytest.raises(ConfigError, match=rf"kafka\.{key}.*authority\.pem"):
        open_consumer(KafkaConfig(security_protocol="SSL", **{key: file}))
    file.write_text("not a certificate")
    with pytest.raises(ConfigError, match=rf"kafka\.{key}.*authority\.pem"):
        open_consumer(KafkaConfig(security_protocol="SSL", **{key: file}))


def test_a_key_without_certificate_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.ssl_certfile is not set"):
        open_consumer(KafkaConfig(security_protocol="SSL", ssl_keyfile=tmp_path / "key.pem"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
@pytest.mark.parametrize("password", [None, "wrong horse"])
def test_a_locked_key_is_a_configuration_error_and_asks_no_terminal(tmp_path: Path, password: str | None) -> None:
    certificate, key = Authority(tmp_path).issue("client", password="right horse")
    secret = None if password is None else SecretStr(password)
    with pytest.raises(ConfigError, match=r"client\.key cannot be used.*SSL_KEY_PASSWORD") as refused:
        open_consumer(
            KafkaConfig(security_protocol="SSL", ssl_certfile=certificate, ssl_keyfile=key, ssl_key_password=secret)
        )
    assert "wrong horse" not in str(refused.value)


def with_password(**settings: Any) -> KafkaConfig:
    return KafkaConfig(security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="alice", **settings)


def test_the_configuration_in_force_is_shown_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("in a file")
    secrets = {
        "FACETSTREAM_KAFKA__SASL_PASSWORD": "wrong horse",
        "FACETSTREAM_KAFKA__SSL_KEY_PASSWORD": "right horse",
        "FACETSTREAM_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "password"),
    }
    for form in ("--json", "--toml", "-v"):
        shown = subprocess.run(
            [sys.executable, "-m", "streamer.cli", "config", "show", form],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | secrets,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "sasl_password_file" in shown.stdout
        assert not any(secret in shown.stdout + shown.stderr for secret in ("wrong horse", "right horse", "in a file"))
