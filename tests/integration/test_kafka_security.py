"""Passwords and certificates, against a broker that insists on them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, ConfigError
from streamer.kafka_clients import open_admin, open_consumer

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="open sesame";'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaConfig]:
    """A broker with a SASL_SSL listener, and the configuration that gets in."""
    from tests.conftest import give_up
    from tests.kafka.broker import Broker
    from tests.kafka.jars import NoBrokerError, find_java

    folder = tmp_path_factory.mktemp("certificates")
    store, authority = folder / "broker.p12", folder / "authority.pem"
    try:
        keytool = str(Path(find_java()).resolve().with_name("keytool"))
        key = [keytool, "-storetype", "PKCS12", "-keystore", str(store), "-storepass", "changeit", "-alias", "broker"]
        make = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-ext", "SAN=ip:127.0.0.1", "-validity", "2"]
        subprocess.run([*key, *make], check=True, capture_output=True)
        subprocess.run([*key, "-exportcert", "-rfc", "-file", str(authority)], check=True, capture_output=True)
        broker = Broker(
            settings={
                "listeners": "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{spare}",
                "advertised.listeners": "PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{spare}",
                "inter.broker.listener.name": "PLAINTEXT",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": _LOGIN,
                "ssl.keystore.location": str(store),
                "ssl.keystore.password": "changeit",
                "ssl.keystore.type": "PKCS12",
            }
        )
    except NoBrokerError as error:
        give_up(str(error))
    with broker:
        yield KafkaConfig(
            bootstrap_servers=f"127.0.0.1:{broker.spare_port}",
            connect_timeout_s=30,
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            sasl_username="alice",
            sasl_password=SecretStr("open sesame"),
            ssl_cafile=authority,
        )


@pytest.mark.kafka
@pytest.mark.slow
def test_the_right_password_and_authority_get_in(guarded: KafkaConfig) -> None:
    admin = open_admin(guarded)
    assert admin.list_topics() == []
    admin.close()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_wrong_password_is_refused_without_being_printed(guarded: KafkaConfig) -> None:
    with pytest.raises(BrokerError, match=r"refused alice: .*sasl_password") as refused:
        open_consumer(guarded.model_copy(update={"sasl_password": SecretStr("wrong horse")}))
    assert "wrong horse" not in str(refused.value)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_certificate_of_an_unknown_authority_is_not_trusted(guarded: KafkaConfig) -> None:
    with pytest.raises(BrokerError, match=r"not trusted: .*certificate.*ssl_cafile"):
        open_consumer(guarded.model_copy(update={"ssl_cafile": None}))


@pytest.mark.kafka
@pytest.mark.slow
def test_the_wrong_protocol_is_named_as_a_possible_cause(guarded: KafkaConfig) -> None:
    with pytest.raises(BrokerError, match="security_protocol right"):
        open_consumer(guarded.model_copy(update={"connect_timeout_s": 1.0, "security_protocol": "PLAINTEXT"}))


@pytest.mark.parametrize("missing", ["sasl_mechanism", "sasl_username", "sasl_password"])
def test_sasl_without_credentials_is_a_configuration_error(missing: str) -> None:
    whole = {"sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": SecretStr("secret")}
    with pytest.raises(ConfigError, match="sasl_mechanism"):
        open_consumer(KafkaConfig(security_protocol="SASL_SSL", **whole | {missing: None}))


def test_a_certificate_file_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    with pytest.raises(ConfigError, match=r"authority\.pem"):
        open_consumer(KafkaConfig(security_protocol="SSL", ssl_cafile=file))
    file.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"authority\.pem"):
        open_consumer(KafkaConfig(security_protocol="SSL", ssl_cafile=file))
