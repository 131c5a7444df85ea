"""`rpcd keys`: make Fernet keys, encrypt values for a service, and change keys while it runs."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from rpcd.cli.broker import CONFIG_FILE, SIGNALS, virtual_host_option
from rpcd.cli.compose import USAGE
from rpcd.cli.key_files import create, in_file, keyring, replace
from rpcd.cli.show import end, json_line, json_printable, say
from rpcd.config import CONFIG
from rpcd.core.crypto import Keyring
from rpcd.core.errors import BadValue

JSON = click.option("--json", "in_json", is_flag=True, help="Print the result as JSON.")
FIELDS = click.option(
    "--fields",
    metavar="NAME,...",
    help="Standard input is JSON, and these fields of it are meant; NAME.NAME is a field within a field.",
)


def _keys_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the keys."""
    said = f"Take [broker] fernet_keys from this config; {CONFIG} if not given."
    command = virtual_host_option(command)
    command = click.option("--key-file", type=click.Path(), metavar="FILE", help="Take the keys from this file.")(command)
    return click.option("-c", "--config", type=CONFIG_FILE, metavar="FILE", envvar=CONFIG, help=said)(command)


@click.group()
def keys() -> None:
    """Make Fernet keys, encrypt values, change keys.

    Encrypted values are opened by the daemon with [broker] fernet_keys, and seen by its handlers alone. A key file holds one
    key a line, the newest first: the first one encrypts, all of them decrypt. No key and no value is ever an argument.

    Exit code: 0 done, 1 a file would be written over, or what is to be decrypted can't be, 2 wrong usage, 73 a file can't be
    written, 74 the result can't be written, 78 wrong config or key file.

    Example: rpcd keys generate --output /etc/rpcd/fernet.key

    Example: rpcd keys encrypt --fields password --config /etc/rpcd/shop.toml <order.json | rpcd call orders -
    """


@keys.command()
@click.option("--output", type=click.Path(), metavar="FILE", help="Write it to a new file that only you may read.")
@click.option("--append", type=click.Path(), metavar="FILE", help="Add it to this key file, behind the others.")
@JSON
def generate(output: str | None, append: str | None, in_json: bool) -> None:
    """Make a key.

    It is printed, or written to a file, which is never written over. A key that is added to a file stands last: it decrypts,
    and encrypts only when `rpcd keys rotate --promote` has put it first.

    Exit code: 0 done, 1 the file is there already, 2 wrong usage, 73 it can't be written, 74 the key can't be printed, 78
    the file holds something else than keys.

    Example: rpcd keys generate --output /etc/rpcd/fernet.key

    Example: rpcd keys generate --append /etc/rpcd/fernet.key
    """
    from cryptography.fernet import Fernet

    key = Fernet.generate_key().decode()
    if output is not None and append is not None:
        raise click.UsageError("Give either --output or --append.")
    if output is not None:
        create(output, key)
        _told(output, 1, in_json)
    elif append is not None:
        known = in_file(append)
        replace(append, [*known, key])
        _told(append, len(known) + 1, in_json)
    else:
        say(json_line({"ok": True, "key": key}) if in_json else key)


@keys.command()
@_keys_options
@FIELDS
@click.option("--exact", is_flag=True, help="Keep the line end that standard input ends with.")
@JSON
def encrypt(
    config: str | None, virtual_host: str | None, key_file: str | None, fields: str | None, exact: bool, in_json: bool
) -> None:
    """Encrypt a value from standard input, or asked for on a terminal.

    It is encrypted with the first key. A line end behind the value is left out. With --fields, a JSON object is printed as
    it came, but for these fields: text is encrypted as it is, any other value as JSON.

    Exit code: 0 done, 2 wrong usage, 74 the result can't be written, 78 wrong config or key file, 130 interrupted.

    Example: rpcd keys encrypt --key-file /etc/rpcd/fernet.key <password.txt

    Example: rpcd keys encrypt --fields card,pin --config /etc/rpcd/shop.toml <order.json
    """
    ring = _ring(config, virtual_host, key_file)

    def seal(value: Any) -> str:
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else msgspec.json.encode(value)
        return ring.seal(data, time.time())

    if fields is not None:
        say(json_printable(_changed(_input(), fields, seal)))
        return
    value = _input() if exact or sys.stdin.isatty() else _input().removesuffix(b"\n").removesuffix(b"\r")
    token = ring.seal(value, time.time())
    say(json_line({"ok": True, "token": token}) if in_json else token)


@keys.command()
@_keys_options
@FIELDS
@click.option("--promote", is_flag=True, help="Put the last key of the --key-file first: from now on it encrypts.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Leave the first N keys in the --key-file.")
@JSON
def rotate(
    config: str | None,
    virtual_host: str | None,
    key_file: str | None,
    fields: str | None,
    promote: bool,
    keep: int | None,
    in_json: bool,
) -> None:
    """Encrypt tokens anew under the first key, or change the order of a key file.

    Tokens come from standard input, one a line; with --fields it is a JSON object with tokens in these fields. A token stays
    as old as it was. With --promote or --keep nothing is read: the key file is written anew, in one step. Daemons take the
    new keys when they are told to reload.

    Exit code: 0 done, 1 a line is no token of these keys (those before it are printed), 2 wrong usage, 73 the key file can't
    be written, 74 the result can't be written, 78 wrong config or key file.

    Example: rpcd keys rotate --key-file /etc/rpcd/fernet.key <tokens.txt >fresh.txt

    Example: rpcd keys rotate --key-file /etc/rpcd/fernet.key --promote --keep 2
    """
    if promote or keep is not None:
        if key_file is None or fields is not None:
            raise click.UsageError("--promote and --keep need a --key-file, and nothing else.")
        known = in_file(key_file)
        wanted = ([known[-1], *known[:-1]] if promote else known)[:keep]
        replace(key_file, wanted)
        _told(key_file, len(wanted), in_json)
        return
    ring = _ring(config, virtual_host, key_file)
    if fields is not None:
        say(json_printable(_changed(_input(), fields, ring.rotate)))
        return
    for token in _rotated(ring, _input()):
        say(json_line({"ok": True, "token": token}) if in_json else token)


def _rotated(ring: Keyring, lines: bytes) -> Iterator[str]:
    for number, line in enumerate(lines.split(b"\n"), 1):
        if line.strip():
            try:
                yield ring.rotate(line.strip())
            except BadValue as error:
                end(f"line {number}: {error}", 1)


def _ring(config: str | None, virtual_host: str | None, key_file: str | None) -> Keyring:
    if config is None and key_file is None:
        raise click.UsageError(f"Name the keys: --config FILE (or {CONFIG}), or --key-file FILE.")
    return keyring(config, virtual_host, key_file)


def _told(file: str, count: int, in_json: bool) -> None:
    held = "1 key" if count == 1 else f"{count} keys"
    say(json_line({"ok": True, "file": file, "keys": count}) if in_json else f"{file} holds {held}")


def _input() -> bytes:
    """Return standard input; on a terminal, what is typed twice without being shown."""
    try:
        if sys.stdin.isatty():
            typed: str = click.prompt("Value", hide_input=True, confirmation_prompt=True, err=True)
            return typed.encode(errors="surrogateescape")
        return sys.stdin.buffer.read()
    except (click.Abort, KeyboardInterrupt):
        number = next(iter(SIGNALS))
        end(SIGNALS[number], 128 + number)


# Fields of a JSON object --------------------------------------------------------------------------


def _changed(raw: bytes, fields: str, change: Callable[[Any], str]) -> str:
    """Return a JSON object with these fields changed and all else as it was written; end with 2 if one is not there."""
    names = [each.strip() for each in fields.split(",")]
    body = raw.strip()
    for name in names:
        try:
            body = _in_object(body, name.split("."), change)
        except BadValue as error:
            end(f"{name}: {error}", 1)
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = "no such field" if _is_object(body) else "standard input is no JSON object"
            end(f"{name}: {said}", USAGE)
    return body.decode()


def _in_object(raw: bytes, names: list[str], change: Callable[[Any], str]) -> bytes:
    found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    name, *inside = names
    value = bytes(found[name])
    if inside:
        found[name] = msgspec.Raw(_in_object(value, inside, change))
    else:
        found[name] = msgspec.Raw(msgspec.json.encode(change(msgspec.json.decode(value))))
    return msgspec.json.encode(found)


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(raw), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
