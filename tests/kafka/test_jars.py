from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kafka import jars
from tests.kafka.jars import NoBrokerError, find_class_path, find_java

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "pom.xml").write_text("<project/>")
    monkeypatch.setattr(jars, "HERE", tmp_path / "kafka")


@pytest.mark.usefixtures("nothing_installed")
def test_missing_java_and_maven_are_named() -> None:
    with pytest.raises(NoBrokerError, match=r"no Java.*KAFKA_BOOTSTRAP"):
        find_java()
    with pytest.raises(NoBrokerError, match=r"no Maven.*KAFKA_BOOTSTRAP"):
        find_class_path()


@pytest.mark.usefixtures("nothing_installed")
def test_java_that_is_too_old_is_named(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    with pytest.raises(NoBrokerError, match="not Java 17 or newer: openjdk version"):
        find_java()


@pytest.mark.usefixtures("nothing_installed")
def test_kept_class_path_is_used_without_maven_while_its_jars_are_there(tmp_path: Path) -> None:
    kept = tmp_path / "kafka" / "target" / "classpath.txt"
    kept.parent.mkdir()
    jar = tmp_path / "broker.jar"
    jar.touch()
    kept.write_text(str(jar))
    assert find_class_path() == str(jar)
    jar.unlink()
    with pytest.raises(NoBrokerError, match="no Maven"):
        find_class_path()


@pytest.mark.usefixtures("nothing_installed")
def test_what_maven_says_is_told_when_it_fails(tmp_path: Path) -> None:
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho 'Could not transfer artifact'\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(NoBrokerError, match="Could not transfer artifact"):
        find_class_path()


@pytest.mark.slow
@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_without_java_broker_tests_are_skipped_with_the_reason_or_fail_if_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "REQUIRE_KAFKA": required}
    for name in ("JAVA_HOME", "KAFKA_BOOTSTRAP"):
        environment.pop(name, None)
    test = "tests/integration/test_kafka_source.py::test_close_is_idempotent"
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", test],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert outcome in told.stdout
    assert "no Java: install" in told.stdout
