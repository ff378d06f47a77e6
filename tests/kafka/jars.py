"""The broker's class path: resolved by Maven from ``pom.xml`` next to this file, kept in ``target/``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
NEEDS_JAVA: Final = 17


class NoBrokerError(Exception):
    """A broker cannot be had on this machine; the message says what is missing."""


def find_java() -> str:
    """The ``java`` to run, from JAVA_HOME or PATH.

    Raises:
        NoBrokerError: if there is none, or it is too old for the broker.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        raise NoBrokerError(f"no Java: install a JRE {NEEDS_JAVA} or newer, or set KAFKA_BOOTSTRAP to a broker")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if found is None or int(found[1]) < NEEDS_JAVA:
        raise NoBrokerError(f"{java} is not Java {NEEDS_JAVA} or newer: {(told.stderr or told.stdout).strip()[:200]}")
    return java


def find_class_path() -> str:
    """The jars of the broker, joined by ``os.pathsep``; downloads them on first use.

    Raises:
        NoBrokerError: if Maven is missing or cannot resolve them.
    """
    pom, kept = HERE / "pom.xml", HERE / "target" / "classpath.txt"
    if kept.exists() and kept.stat().st_mtime >= pom.stat().st_mtime:
        class_path = kept.read_text()
        if all(Path(jar).exists() for jar in class_path.split(os.pathsep)):  # a cleaned cache leaves dead paths
            return class_path
    maven = shutil.which("mvn")
    if maven is None:
        raise NoBrokerError("no Maven (mvn) to fetch the broker's jars: install it, or set KAFKA_BOOTSTRAP to a broker")
    fresh = kept.with_name(f"classpath.{os.getpid()}.txt")
    told = subprocess.run(
        [maven, "-q", "-B", "-f", str(pom), "dependency:build-classpath", f"-Dmdep.outputFile={fresh}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        stdin=subprocess.DEVNULL,
    )
    if told.returncode or not fresh.exists():
        raise NoBrokerError(f"Maven cannot resolve the broker's jars:\n{(told.stdout + told.stderr)[-2_000:]}")
    fresh.replace(kept)  # whole or not at all: two runs may resolve at once
    return kept.read_text()
