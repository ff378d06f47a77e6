"""Certificates and credentials for Kafka, from :class:`schemas.config.KafkaConfig` and the files it names.

No error here repeats a secret: they name the key of the configuration, the file, and what is wrong with it.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kafka.errors import SaslAuthenticationFailedError
from kafka.net.sasl.oauth import AbstractTokenProvider

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from schemas.config import KafkaConfig


def security_options(config: KafkaConfig) -> dict[str, Any]:
    """What kafka-python needs of the security settings.

    Raises:
        ConfigError: if one is missing, contradicts another, or names a file or function that cannot be used.
    """
    options: dict[str, Any] = {"security_protocol": config.security_protocol}
    if config.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(config)
    if config.security_protocol.startswith("SASL"):
        options |= _sasl(config)
    return options


def who(config: KafkaConfig) -> str:
    """As whom we come, for messages."""
    if not config.security_protocol.startswith("SASL"):
        return "us"
    return config.sasl_username or f"the token of {config.sasl_token_provider}"


def credential_keys(config: KafkaConfig) -> str:
    """The keys to look at when the broker refuses us."""
    if not config.security_protocol.startswith("SASL"):
        return "kafka.ssl_certfile and ssl_keyfile"
    if config.sasl_mechanism == "OAUTHBEARER":
        return "kafka.sasl_token_provider"
    given_by = "sasl_password_file" if config.sasl_password_file else "sasl_password"
    return f"kafka.sasl_mechanism, sasl_username and {given_by}"


def _ssl_context(config: KafkaConfig) -> ssl.SSLContext:
    """Loaded here, since kafka-python would do it at each connection, and only log that it cannot."""
    try:
        context = ssl.create_default_context(cafile=config.ssl_cafile)
    except OSError as error:
        raise ConfigError(f"kafka.ssl_cafile {config.ssl_cafile} cannot be used: {error}") from error
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError(f"kafka.ssl_keyfile is {config.ssl_keyfile}, but kafka.ssl_certfile is not set")
        return context
    secret = config.ssl_key_password
    password = secret.get_secret_value() if secret is not None else ""
    try:
        # Always with a password: without one OpenSSL asks the terminal for that of an encrypted key.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"kafka.ssl_certfile {config.ssl_certfile} with key {config.ssl_keyfile or 'in the same file'} cannot be "
            f"used: {error}; check both files and FACETSTREAM_KAFKA__SSL_KEY_PASSWORD"
        ) from error
    return context


def _sasl(config: KafkaConfig) -> dict[str, Any]:
    if config.sasl_mechanism is None:
        raise ConfigError(f"kafka.security_protocol is {config.security_protocol}: set kafka.sasl_mechanism")
    if config.sasl_mechanism == "OAUTHBEARER":
        if config.sasl_token_provider is None:
            raise ConfigError("kafka.sasl_mechanism is OAUTHBEARER: set kafka.sasl_token_provider to module:callable")
        return {
            "sasl_mechanism": config.sasl_mechanism,
            "sasl_oauth_token_provider": _Tokens(config.sasl_token_provider),
        }
    password = _password(config)
    if config.sasl_username is None or password is None:
        raise ConfigError(
            f"kafka.sasl_mechanism is {config.sasl_mechanism}: set kafka.sasl_username, and "
            "FACETSTREAM_KAFKA__SASL_PASSWORD or kafka.sasl_password_file"
        )
    return {
        "sasl_mechanism": config.sasl_mechanism,
        "sasl_plain_username": config.sasl_username,
        "sasl_plain_password": password,
    }


def _password(config: KafkaConfig) -> str | None:
    file = config.sasl_password_file
    if file is None:
        return config.sasl_password.get_secret_value() if config.sasl_password is not None else None
    if config.sasl_password is not None:
        raise ConfigError("kafka.sasl_password and kafka.sasl_password_file are both set; give one of them")
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"kafka.sasl_password_file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:  # whose text, and whose cause, would show what is in the file
        raise ConfigError(f"kafka.sasl_password_file {file} is not UTF-8 text") from None
    if not password:
        raise ConfigError(f"kafka.sasl_password_file {file} is empty; it must hold the password")
    return password


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python ships no types
    """Asks the configured function for a token at each connection; it should keep one as long as it is valid."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._function = _load(name)

    def token(self) -> str:
        """A token.

        Raises:
            SaslAuthenticationFailedError: if the function fails, or returns none. Only the kind of its failure is
                told, as its text may hold a secret.
        """
        try:
            token = self._function()
        except Exception as error:  # noqa: BLE001  # whatever somebody else's function raises
            raise SaslAuthenticationFailedError(
                f"kafka.sasl_token_provider {self._name} raised {type(error).__name__}"
            ) from None
        if not isinstance(token, str) or not token:
            raise SaslAuthenticationFailedError(
                f"kafka.sasl_token_provider {self._name} returned {type(token).__name__}, not a token"
            )
        return token


def _load(name: str) -> Callable[[], object]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(
            f"kafka.sasl_token_provider {name} cannot be imported: {type(error).__name__}: {error}; "
            "is it installed, or on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ConfigError(f"kafka.sasl_token_provider {name} is not a function")
    return found  # type: ignore[no-any-return]
