"""The systemd units: systemd finds nothing wrong, they are locked down, and they say what the code says."""

import pathlib
import re
import subprocess

import pytest
from twisted.python.usage import UsageError

from rpcd import service
from rpcd.core.errors import ExitCode
from rpcd.core.settings import Service
from rpcd.ops import ending
from rpcd.tap import Options

ROOT = pathlib.Path(__file__).parent.parent.parent
UNIT = ROOT / "systemd" / "rpcd@.service"
TARGET = ROOT / "systemd" / "rpcd.target"

EXPOSURE = 1.5
"""The highest score of `systemd-analyze security` that is good enough; 10 is a service without any hardening."""


def analyze(*words: object) -> str:
    done = subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def directives(path: pathlib.Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    return directives(UNIT)


def only(unit: dict[str, list[str]], name: str) -> str:
    (value,) = unit[name]
    return value


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    assert analyze("verify", "--man=no", UNIT, TARGET) == ""


def test_a_wrong_unit_would_be_found(tmp_path: pathlib.Path) -> None:
    wrong = tmp_path / "rpcd@.service"
    wrong.write_text(UNIT.read_text().replace("DynamicUser=", "DynamcUser="))
    assert "DynamcUser" in analyze("verify", "--man=no", wrong)


def test_security_08_17_the_unit_takes_away_what_consumers_do_not_need(unit: dict[str, list[str]]) -> None:
    told = analyze("security", "--offline=true", "--no-pager", UNIT)
    score = re.search(r"Overall exposure level for .*: ([\d.]+)", told)
    assert score is not None, told
    assert float(score[1]) <= EXPOSURE, told
    assert only(unit, "LimitCORE") == "0"  # a core would hold what is secret


def test_what_breaks_handlers_or_tls_is_not_taken_away(unit: dict[str, list[str]]) -> None:
    assert "MemoryDenyWriteExecute" not in unit  # pyOpenSSL: "Cannot allocate write+execute memory for ffi.callback()"
    assert "ProcSubset" not in unit
    families = only(unit, "RestrictAddressFamilies").split()
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(families)
    assert only(unit, "SystemCallErrorNumber") == "EPERM"  # an error to handle, not the end of the process


def test_security_18_exit_codes_mean_the_same_to_systemd_and_to_the_code(unit: dict[str, list[str]]) -> None:
    assert only(unit, "Restart") == "on-failure"
    assert set(map(int, only(unit, "RestartPreventExitStatus").split())) == {ExitCode.NOPERM, ExitCode.CONFIG}
    assert int(only(unit, "SuccessExitStatus")) == ExitCode.TEMPFAIL
    assert int(only(unit, "RestartForceExitStatus")) == ExitCode.TEMPFAIL
    assert only(unit, "StartLimitIntervalSec") == "0"


def test_the_daemon_ends_itself_before_systemd_kills_it(unit: dict[str, list[str]]) -> None:
    longest = Service().drain_timeout + service.CLOSE_SECONDS + service.GUARD_SECONDS + 2 * ending.LAST_WORDS_SECONDS
    assert longest < int(only(unit, "TimeoutStopSec"))


def test_the_unit_starts_twistd_as_it_is(unit: dict[str, list[str]]) -> None:
    command = only(unit, "ExecStart").split()
    assert command[:2] == ["/usr/bin/env", "${RPCD_TWISTD}"]  # braces: one word, whatever the path has in it
    assert command[-1] == "$RPCD_OPTIONS"  # no braces: none, one or several words
    assert command[2:5] == ["-n", "--pidfile=", "rpcd"]
    options = Options()
    options.parseOptions(command[5:-1])
    assert options["config"] == "/etc/rpcd/%i.toml"
    with pytest.raises(UsageError):
        options.parseOptions(["--no-such-option"])
    defaults = dict(word.split("=", 1) for line in unit["Environment"] for word in line.split())
    assert defaults["RPCD_OPTIONS"] == ""
    assert defaults["RPCD_TWISTD"].endswith("/twistd")
    assert unit["EnvironmentFile"] == ["-/etc/default/rpcd", "-/etc/default/rpcd-%i"]


def test_the_copy_of_the_config_has_the_name_of_the_config(unit: dict[str, list[str]]) -> None:
    name, path = only(unit, "LoadCredential").split(":")
    assert path == "/etc/rpcd/%i.toml"
    assert name == pathlib.PurePath(path).name
    assert only(unit, "AssertPathExists") == path


def test_a_name_is_used_as_it_is_written(unit: dict[str, list[str]]) -> None:
    assert "%I" not in "\n".join(value for values in unit.values() for value in values)  # shop-eu is not shop/eu


def test_instances_start_and_stop_with_the_target_and_the_boot_does_not_wait(unit: dict[str, list[str]]) -> None:
    assert only(unit, "PartOf") == only(unit, "WantedBy") == TARGET.name
    assert TARGET.name in unit["After"]  # else the target, and all that comes after it, would wait for a broker
    assert only(directives(TARGET), "WantedBy") == "multi-user.target"


def test_each_instance_is_a_user_of_its_own(unit: dict[str, list[str]]) -> None:
    assert only(unit, "DynamicUser") == "yes"
    assert only(unit, "User") == "rpcd-%i"
    for name in ("StateDirectory", "RuntimeDirectory"):
        assert only(unit, name) == "rpcd/%i"
        assert only(unit, f"{name}Mode") == "0700"


def test_the_sample_of_the_environment_file_names_variables_that_exist(unit: dict[str, list[str]]) -> None:
    sample = (ROOT / "etc" / "default" / "rpcd").read_text()
    named = set(re.findall(r"^#([A-Z_]+)=", sample, re.MULTILINE))
    assert named == {"RPCD_TWISTD", "RPCD_OPTIONS", "RABBITMQ_URL", "RABBITMQ_HEARTBEAT"}
    assert not [line for line in sample.splitlines() if line and not line.startswith("#")]
