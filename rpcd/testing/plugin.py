"""pytest's plugin: `rpcd_harness`, the consumers of a config without a broker, and `rabbitmq`, a private broker.

pytest loads it by itself wherever rpcd is installed, so nothing is imported here before a test asks for a fixture.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rpcd.testing.harness import Harness
    from rpcd.testing.node import Node

CONFIG = "rpcd_config"
"""The setting of pytest that names the config file, relative to its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tell pytest of the plugin's own setting."""
    parser.addini(CONFIG, "rpcd's config file, relative to the directory of this one; the fixture rpcd_harness runs it")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the plugin's own marker."""
    config.addinivalue_line(
        "markers",
        "rpcd(config, **options): the config file (relative to pytest's rootdir) and the options of rpcd.testing.Harness for"
        " the fixture rpcd_harness",
    )


@pytest.fixture
def rpcd_harness(request: pytest.FixtureRequest) -> Iterator["Harness"]:
    """Run the consumers of the project's config without a broker; see rpcd.testing.Harness.

    The config file is named by `rpcd_config` in pytest's settings, or by `@pytest.mark.rpcd(config="shop.toml")`.
    """
    from rpcd.core.errors import SettingsError  # noqa: PLC0415  # only if it is used
    from rpcd.testing.harness import Harness  # noqa: PLC0415  # the same

    marker = request.node.get_closest_marker("rpcd")
    said: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    if marker is not None and marker.args:
        (said["config"],) = marker.args
    config = _config(request.config, said.pop("config", None))
    try:
        harness = Harness(config, **said)
    except SettingsError as error:
        pytest.fail(str(error), pytrace=False)
    yield harness
    harness.close()


def _config(config: pytest.Config, marked: Any) -> Any:
    """Return what a harness is made from; a relative path begins at pytest's own config file, or at its root."""
    if marked is not None and not isinstance(marked, str):
        return marked
    place = config.rootpath if config.inipath is None else config.inipath.parent
    named = marked or config.getini(CONFIG)
    if not named:
        pytest.fail(
            f'rpcd_harness: no config file is named; write {CONFIG} = "shop.toml" into pytest\'s settings, or mark the test'
            ' with @pytest.mark.rpcd(config="shop.toml")',
            pytrace=False,
        )
    path = place / named
    if not path.is_file():
        pytest.fail(f"rpcd_harness: there is no config file {path}", pytrace=False)
    return path


@pytest.fixture(scope="session")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Node"]:
    """Run a private RabbitMQ node on loopback for this session; every process of pytest-xdist has one of its own."""
    from rpcd.testing.node import Node, NodeError  # noqa: PLC0415  # only if it is used

    try:
        node = Node(tmp_path_factory.mktemp("rabbitmq"))
    except NodeError as error:
        pytest.fail(f"rabbitmq: {error}", pytrace=False)
    yield node
    node.stop()


@pytest.fixture
def rabbitmq(rabbitmq_node: "Node") -> str:
    """Return the URL of a virtual host that nobody has used, on a private RabbitMQ node.

    It needs RabbitMQ's server installed (Debian: the package rabbitmq-server), which need not run.
    """
    return rabbitmq_node.fresh_url()
