"""pytest's plugin, as a user's own pytest loads it: by its entry point, in a process and a project of its own."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from daemon import RPCD

ROOT = pathlib.Path(__file__).parent.parent.parent

PROJECT = {
    "shop.toml": """
        [service]
        path = ["."]
        [queues.orders]
        [consumers.orders]
        queue = "orders"
        handler = "shop:order"
        """,
    "shop.py": """
        def order(message):
            return {"number": len(message.body["items"])}
        """,
    "pytest.ini": """
        [pytest]
        rpcd_config = shop.toml
        addopts = --strict-markers
        filterwarnings = error
        """,
}


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, text in PROJECT.items():
        write(tmp_path / name, text)
    return tmp_path


def write(path: pathlib.Path, text: str) -> None:
    path.write_text("\n".join(line.removeprefix("        ") for line in text.strip("\n").splitlines()) + "\n")


def run(project: pathlib.Path, test: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    write(project / "test_shop.py", test)
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "RABBITMQ"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=project,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_the_harness_runs_the_config_that_pytests_settings_name(project: pathlib.Path) -> None:
    test = """
        def test_an_order(rpcd_harness):
            assert rpcd_harness.call("orders", {"items": ["tea"]}).data == {"number": 1}
        """
    done = run(project, test)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_marker_names_another_config_and_options(project: pathlib.Path) -> None:
    write(project / "other.toml", PROJECT["shop.toml"].replace("orders", "others"))
    test = """
        import pytest

        @pytest.mark.rpcd(config="other.toml", reraise=False)
        def test_an_order(rpcd_harness):
            assert rpcd_harness.call("others", {}).message == "An unexpected error occurred"

        @pytest.mark.rpcd({"pure": lambda message: 5})
        def test_no_file_at_all(rpcd_harness):
            assert rpcd_harness.call("pure").data == {"result": 5}
        """
    done = run(project, test)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_config_that_is_not_named_or_not_there_is_told(project: pathlib.Path) -> None:
    (project / "pytest.ini").unlink()
    test = """
        import pytest

        def test_an_order(rpcd_harness):
            pass

        @pytest.mark.rpcd(config="none.toml")
        def test_another(rpcd_harness):
            pass
        """
    done = run(project, test)
    assert done.returncode == 1
    assert "rpcd_harness: no config file is named; write rpcd_config" in done.stdout
    assert "there is no config file" in done.stdout


def test_every_mistake_of_a_config_is_told(project: pathlib.Path) -> None:
    write(project / "shop.toml", PROJECT["shop.toml"].replace("shop:order", "shop:ordre").replace("[queues.orders]", ""))
    done = run(project, "def test_an_order(rpcd_harness):\n    pass\n")
    assert "has no 'ordre'; did you mean 'order'?" in done.stdout
    assert "consumers.orders.queue" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plugin_costs_others_nothing(project: pathlib.Path) -> None:
    test = """
        import sys

        def test_nothing_is_loaded():
            assert "rpcd.testing.plugin" in sys.modules
            assert {"twisted", "pika", "rpcd.testing.harness", "cattrs"}.isdisjoint(sys.modules)
        """
    done = run(project, test)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_rabbitmq_is_a_node_of_its_own_with_a_virtual_host_for_each_test(project: pathlib.Path) -> None:
    test = """
        import pathlib
        import pika
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_a_queue(rabbitmq, rabbitmq_node, number):
            connection = pika.BlockingConnection(pika.URLParameters(rabbitmq))
            queue = connection.channel().queue_declare("orders").method
            assert queue.message_count == 0
            with pytest.raises(pika.exceptions.ChannelClosedByBroker):
                connection.channel().queue_declare("left", passive=True)
            connection.channel().queue_declare("left")
            connection.close()
            pathlib.Path("port").write_text(rabbitmq_node.url)
        """
    done = run(project, test)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert (project / "port").read_text().startswith("amqp://guest:guest@127.0.0.1:")


def test_a_rabbitmq_that_is_not_installed_is_told_and_no_skip(project: pathlib.Path) -> None:
    test = """
        from rpcd.ops import rabbitmq as private

        def test_a_queue(request, monkeypatch):
            monkeypatch.setattr(private, "server_scripts", lambda root: None)
            request.getfixturevalue("rabbitmq")
        """
    done = run(project, test)
    assert "rabbitmq: RabbitMQ is not installed: install the package rabbitmq-server" in done.stdout
    assert "1 failed" in done.stdout


def test_the_example_passes_as_its_first_line_says(tmp_path: pathlib.Path) -> None:
    shutil.copytree(ROOT / "examples/testing", tmp_path / "example")
    said = (tmp_path / "example/shop.toml").read_text().partition("\n")[0]
    command = shlex.split(said.removeprefix("# ").partition(";")[0])
    assert command[:3] == ["python", "-m", "pytest"]
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path / "example", capture_output=True, text=True, timeout=100
    )
    assert "6 passed" in done.stdout, done.stdout + done.stderr


def test_the_example_is_right_for_a_broker_as_well(url: str) -> None:
    command = [str(RPCD), "check", "--config", str(ROOT / "examples/testing/shop.toml"), "--broker"]
    environment = {**os.environ, "RABBITMQ_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
