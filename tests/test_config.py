"""Settings: how each is read, which source is nearest, and what a person is told of a broken one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn import config
from meshnn.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("256MB", 256 * 10**6),
        ("2GB", 2 * 10**9),
        ("1GiB", 2**30),
        ("64MiB", 64 * 2**20),
        ("1.5gb", 15 * 10**8),
        ("3 MB", 3 * 10**6),
        ("4k", 4000),
        ("1TB", 10**12),
        ("17", 17),
        ("17B", 17),
        (17, 17),
    ],
)
def test_sizes_are_decimal_unless_they_say_i(text: object, size_bytes: int) -> None:
    """MB is 10^6 and MiB is 2^20; a plain number is bytes; case and one blank do not matter."""
    assert config.parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MB", "12XB", "-1MB", "0", 0, -5, True, None, "1e6", "0.1", "1 2MB", "٣MB", "1iB", [1]]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Nothing, negatives, unknown units and foreign digits are no sizes."""
    with pytest.raises(ValueError, match="no size"):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("pi.local:7766", ("pi.local", 7766)),
        ("192.168.1.5:1", ("192.168.1.5", 1)),
        ("[fe80::1]:65535", ("fe80::1", 65535)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        (" host:80 ", ("host", 80)),
    ],
)
def test_host_and_port_are_told_apart(text: str, address: tuple[str, int]) -> None:
    """Names, IPv4 addresses and IPv6 addresses in brackets, each with a port."""
    assert config.parse_host_port(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:0", "host:65536", "fe80::1:80", "a b:80", "http://h:80", 80]
)
def test_what_is_no_host_and_port_is_refused(text: object) -> None:
    """A port is needed, from 1 to 65535, and an IPv6 address needs its brackets."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        config.parse_host_port(text)


def test_peers_are_a_list_or_text_with_commas() -> None:
    """The three sources write several peers each in its way; doubles count once and the order stays."""
    assert config.parse_peers("b:2, a:1,b:2,") == (("b", 2), ("a", 1))
    assert config.parse_peers(["b:2", "a:1"]) == config.parse_peers(("b:2", "a:1")) == (("b", 2), ("a", 1))
    with pytest.raises(ValueError, match="list"):
        config.parse_peers(7)


@given(st.text(max_size=80))
def test_a_name_is_printable_and_short(text: str) -> None:
    """Whatever is typed, a name that is accepted has 1 to 63 printable characters and no blanks around it."""
    try:
        name = config.parse_name(text)
    except ValueError:
        stripped = text.strip()
        assert not stripped or len(stripped) > 63 or not stripped.isprintable()
    else:
        assert 1 <= len(name) <= 63
        assert name.isprintable()
        assert name == text.strip()


@given(
    st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(max_size=5)))
)
def test_every_reader_answers_or_refuses(value: object) -> None:
    """Whatever a file or a shell holds, a reader returns or raises ValueError, nothing else."""
    for setting in config.SETTINGS.values():
        try:
            read = setting.parse(value)
        except ValueError:
            continue
        assert read is not None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("port", "65536", "from 0 to 65535"),
        ("http_port", "-1", "from 0 to 65535"),
        ("port", True, "from 0 to 65535"),
        ("threads", "0", "from 1 to 1024"),
        ("threads", 1.5, "from 1 to 1024"),
        ("interface", "eth0", "no IP address"),
        ("interface", "999.1.1.1", "no IP address"),
        ("log", "loud", "choose from debug, info, warning, error"),
        ("name", "a\nb", "1 to 63 printable"),
        ("mesh", "m" * 64, "1 to 63 printable"),
        ("state_dir", "", "not a folder"),
        ("state_dir", "a\0b", "not a folder"),
        ("state_dir", 5, "not a folder"),
    ],
)
def test_a_broken_setting_says_what_is_right(key: str, value: object, said: str) -> None:
    """Each reader's refusal names what it takes."""
    with pytest.raises(ValueError, match=said):
        config.SETTINGS[key].parse(value)


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment whose settings and state lie in an empty folder."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def write(path: Path, text: str) -> Path:
    """A file with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(flags: dict[str, object], environ: dict[str, str], tmp_path: Path) -> config.Config:
    """`config.load` with a system file that lies in the test's own folder."""
    return config.load(flags, environ, system_file=tmp_path / "etc" / "config.toml")


def test_nothing_needs_to_be_set(nowhere: dict[str, str], tmp_path: Path) -> None:
    """With no setting anywhere, every field has a sensible value taken from the machine."""
    made = load({}, nowhere, tmp_path)
    assert made.mesh == "home"
    assert 1 <= len(made.name) <= 63
    assert made.memory_bytes > 0
    assert made.disk_bytes > 0
    assert 1 <= made.threads <= max(1, (os.cpu_count() or 1) - 1)
    assert (made.port, made.http_port, made.interface, made.peers) == (None, None, None, ())
    assert made.state_dir == tmp_path / "state" / "meshnn"
    assert not made.state_dir.exists(), "reading settings makes no folder"


def test_the_nearest_source_wins(nowhere: dict[str, str], tmp_path: Path) -> None:
    """Flags before variables before the person's file before the system's, setting by setting."""
    keys = ["name", "mesh", "interface", "log"]
    sources = {"a": keys[:1], "b": keys[:2], "c": keys[:3], "d": keys}
    values = {"name": "n-{}", "mesh": "m-{}", "interface": "127.0.0.{}", "log": "{}"}
    text = {
        who: {key: values[key].format({"interface": ord(who) - 96, "log": "error"}.get(key, who)) for key in given}
        for who, given in sources.items()
    }
    write(tmp_path / "etc" / "config.toml", "\n".join(f'{key} = "{value}"' for key, value in text["d"].items()))
    write(tmp_path / "config/meshnn/config.toml", "\n".join(f'{key} = "{value}"' for key, value in text["c"].items()))
    environ = nowhere | {f"MESHNN_{key.upper()}": value for key, value in text["b"].items()}
    made = load(dict(text["a"]), environ, tmp_path)
    assert (made.name, made.mesh, made.interface, made.log_level) == ("n-a", "m-b", "127.0.0.3", "error")


def test_a_file_that_is_named_replaces_the_persons_own(nowhere: dict[str, str], tmp_path: Path) -> None:
    """`--config FILE` (or MESHNN_CONFIG) is read instead of the usual file; the system's still counts below it."""
    write(tmp_path / "config/meshnn/config.toml", 'mesh = "usual"\n')
    write(tmp_path / "etc/config.toml", 'mesh = "system"\nname = "system"\n')
    named = write(tmp_path / "named.toml", 'mesh = "named"\n')
    assert load({"config": str(named)}, nowhere, tmp_path).mesh == "named"
    made = load({}, nowhere | {"MESHNN_CONFIG": str(named)}, tmp_path)
    assert (made.mesh, made.name) == ("named", "system")


def test_types_of_toml_are_taken_as_they_are(nowhere: dict[str, str], tmp_path: Path) -> None:
    """Numbers and lists in a file need no quotes."""
    named = write(tmp_path / "n.toml", 'memory = 1000\nthreads = 2\nport = 7000\npeers = ["a:1", "b:2"]\n')
    made = load({"config": named}, nowhere, tmp_path)
    assert (made.memory_bytes, made.threads, made.port, made.peers) == (1000, 2, 7000, (("a", 1), ("b", 2)))


def test_flags_that_were_not_typed_do_not_count(nowhere: dict[str, str], tmp_path: Path) -> None:
    """None and an empty tuple are what a command line hands over for absent flags; an empty variable is absent too."""
    environ = nowhere | {"MESHNN_PEER": "a:1", "MESHNN_PORT": "8000", "MESHNN_NAME": ""}
    made = load({"peers": (), "port": None, "mesh": None}, environ, tmp_path)
    assert (made.peers, made.port, made.mesh) == ((("a", 1),), 8000, "home")


def test_every_broken_setting_gets_its_line(nowhere: dict[str, str], tmp_path: Path) -> None:
    """One line for each, which says where it stands, what stood there and what is right; all of them at once."""
    named = write(tmp_path / "n.toml", "threads = 0\nport = 70000\n")
    flags: dict[str, object] = {"config": str(named), "memory": "12XB", "http_port": 99999}
    with pytest.raises(UsageError) as raised:
        load(flags, nowhere | {"MESHNN_INTERFACE": "lo"}, tmp_path)
    assert sorted(str(raised.value).splitlines()) == sorted(
        [
            "--memory: '12XB' is no size: say 256MB, 2GB or 1GiB",
            "--http-port: '99999' is not a whole number from 0 to 65535",
            "MESHNN_INTERFACE: 'lo' is no IP address: say 192.168.1.5, or 127.0.0.1 for this device alone",
            f"{named}: threads: '0' is not a whole number from 1 to 1024",
            f"{named}: port: '70000' is not a whole number from 0 to 65535",
        ]
    )


@pytest.mark.parametrize("text", [f"KEY{'.a' * 900} = 1", f"KEY = {'[' * 90}{']' * 90}", "KEY = [{a = 1}]", "[KEY]"])
@pytest.mark.parametrize("key", sorted(config.SETTINGS))
def test_what_is_nested_is_refused_however_deep(nowhere: dict[str, str], tmp_path: Path, key: str, text: str) -> None:
    """A table, or a list of lists, is the value of no setting."""
    named = write(tmp_path / "c.toml", text.replace("KEY", key))
    with pytest.raises(UsageError, match=rf"c.toml: {key}: "):
        load({"config": named}, nowhere, tmp_path)


def test_a_broken_value_that_is_overruled_does_not_matter(nowhere: dict[str, str], tmp_path: Path) -> None:
    """A person can get past a broken file with a flag."""
    assert load({"port": "7000"}, nowhere | {"MESHNN_PORT": "x"}, tmp_path).port == 7000


@pytest.mark.parametrize(
    ("flags", "variables", "text", "said"),
    [
        ({"memmory": "1GB"}, {}, "", "--memmory: no such setting; did you mean --memory?"),
        ({}, {"MESHNN_STATEDIR": "x"}, "", "MESHNN_STATEDIR: no such setting; did you mean MESHNN_STATE_DIR?"),
        ({}, {}, "http-port = 1", "http-port: no such setting; did you mean http_port?"),
        ({}, {}, "zzz = 1", "zzz: no such setting; choose from name, mesh, memory"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(
    nowhere: dict[str, str], tmp_path: Path, flags: dict[str, object], variables: dict[str, str], text: str, said: str
) -> None:
    """A misspelt setting is never ignored, wherever it stands, and the nearest one is offered."""
    write(tmp_path / "etc" / "config.toml", text)
    with pytest.raises(UsageError) as raised:
        load(flags, nowhere | variables, tmp_path)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"), [(b"mesh = ", "not TOML"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")], ids=str
)
def test_a_file_that_cannot_be_read_is_one_line(
    nowhere: dict[str, str], tmp_path: Path, content: bytes | None, said: str
) -> None:
    """A named file that is broken or absent is named in one line."""
    named = tmp_path / "n.toml"
    if content is not None:
        named.write_bytes(content)
    with pytest.raises(UsageError, match=said) as raised:
        load({"config": str(named)}, nowhere, tmp_path)
    assert str(named) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_in_place_of_a_file_is_one_line(nowhere: dict[str, str], tmp_path: Path) -> None:
    """What the operating system refuses is told as it says it."""
    with pytest.raises(UsageError, match="cannot be read"):
        load({"config": str(tmp_path)}, nowhere, tmp_path)


def test_systemd_says_where_state_lives(nowhere: dict[str, str], tmp_path: Path) -> None:
    """The first of STATE_DIRECTORY wins over the person's folder, and a setting wins over both."""
    environ = nowhere | {"STATE_DIRECTORY": "/var/lib/meshnn:/var/lib/other"}
    assert load({}, environ, tmp_path).state_dir == Path("/var/lib/meshnn")
    assert load({"state_dir": str(tmp_path / "s")}, environ, tmp_path).state_dir == tmp_path / "s"


def test_a_config_cannot_be_changed(nowhere: dict[str, str], tmp_path: Path) -> None:
    """Settings are a value: nobody alters them under another's feet; a changed copy is made with `replace`."""
    made = load({}, nowhere, tmp_path)
    with pytest.raises(AttributeError):
        made.mesh = "other"  # type: ignore[misc]  # that this is refused is the point
    assert msgspec.structs.replace(made, mesh="other").mesh == "other"


def test_every_field_has_a_setting() -> None:
    """No field of Config is out of a person's reach, and no setting fills a field that is not there."""
    assert {setting.field for setting in config.SETTINGS.values()} == set(config.Config.__struct_fields__)
