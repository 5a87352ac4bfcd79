"""Strict settings: where values come from, which source wins, and what a mistake is told."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.errors import UsageError
from tidegate_core.quantity import format_duration, parse_duration
from tidegate_core.settings import Form, environment_names, read_settings, show_settings

Wait = Annotated[
    timedelta,
    Form(
        accepted='a duration such as "3s"',
        read=lambda value: parse_duration(str(value)),
        show=format_duration,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boat:
    name: str
    crew: tuple[str, ...] = ()
    length: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    width: int = 10
    colour: Literal["red", "green"] = "red"
    is_open: bool = False
    wait: Wait = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Harbour:
    title: str = ""
    gate: Gate = Gate()
    boat: tuple[Boat, ...] = ()


def harbour(
    tmp_path: Path, toml: str = "", command_line: dict[str, str] | None = None, **environment: str
) -> Harbour:
    """Reads settings as a program would: a file, an environment and a command line."""
    file = tmp_path / "harbour.toml"
    file.write_text(toml)
    return read_settings(Harbour, file=file, environment=environment, command_line=command_line or {})


def complaint(tmp_path: Path, toml: str = "", **environment: str) -> str:
    """What an operator is told about a mistake, cause and next step."""
    with pytest.raises(UsageError) as caught:
        harbour(tmp_path, toml, **environment)
    return str(caught.value)


def test_an_empty_file_gives_every_default(tmp_path: Path) -> None:
    """DESIGN 8: everything has a default."""
    assert harbour(tmp_path) == Harbour()


def test_a_file_fills_tables_and_arrays_of_tables(tmp_path: Path) -> None:
    """DESIGN 8: the shape of the file is the shape of the values."""
    read = harbour(
        tmp_path, '[gate]\nwait = "3s"\n[[boat]]\nname = "a"\ncrew = ["x", "y"]\n[[boat]]\nname = "b"'
    )

    assert read.gate.wait == timedelta(seconds=3)
    assert read.boat == (Boat(name="a", crew=("x", "y")), Boat(name="b"))


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    """DESIGN 8: the command line wins over the environment, the environment over the file."""
    file = "[gate]\nwidth = 1\ncolour = 'green'\nis_open = true"

    read = harbour(tmp_path, file, {"gate.width": "3"}, TIDEGATE_GATE__WIDTH="2", TIDEGATE_GATE__COLOUR="red")

    assert read.gate == Gate(width=3, colour="red", is_open=True)


def test_every_key_has_an_environment_twin() -> None:
    """DESIGN 8: double underscores nest, an index selects one of an array."""
    assert set(environment_names(Harbour)) == {
        "TIDEGATE_TITLE",
        "TIDEGATE_GATE__WIDTH",
        "TIDEGATE_GATE__COLOUR",
        "TIDEGATE_GATE__IS_OPEN",
        "TIDEGATE_GATE__WAIT",
        "TIDEGATE_BOAT",
        "TIDEGATE_BOAT__0__NAME",
        "TIDEGATE_BOAT__0__CREW",
        "TIDEGATE_BOAT__0__LENGTH",
    }


@pytest.mark.parametrize("crew", ["x,y", "x, y", '["x", "y"]'])
def test_a_list_in_the_environment_is_json_or_comma_separated(tmp_path: Path, crew: str) -> None:
    """DESIGN 8: environment twins of lists."""
    read = harbour(tmp_path, TIDEGATE_BOAT__0__NAME="a", TIDEGATE_BOAT__0__CREW=crew)

    assert read.boat == (Boat(name="a", crew=("x", "y")),)


def test_array_tables_can_come_from_the_environment_as_json(tmp_path: Path) -> None:
    """DESIGN 8: environment twins of arrays of tables; they replace those of the file."""
    read = harbour(tmp_path, "[[boat]]\nname = 'f'", TIDEGATE_BOAT='[{"name": "e", "length": 7}]')

    assert read.boat == (Boat(name="e", length=7),)


def test_a_table_of_the_file_can_be_changed_by_index(tmp_path: Path) -> None:
    """DESIGN 8: also beyond nine, where the names no longer sort as the numbers do."""
    names = {f"TIDEGATE_BOAT__{at}__NAME": f"b{at}" for at in range(12)}

    read = harbour(tmp_path, "[[boat]]\nname = 'f'\nlength = 9", **names)

    assert [boat.name for boat in read.boat] == [f"b{at}" for at in range(12)]
    assert read.boat[0].length == 9


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[gate]\nwidht = 1", ("harbour.toml", "unknown key `gate.widht`", "did you mean `gate.width`?")),
        ("[gatee]\n", ("harbour.toml", "unknown key `gatee`", "did you mean `gate`?")),
        ("width = 1", ("harbour.toml", "unknown key `width`", "did you mean `gate.width`?")),
        (
            "[[boat]]\nname='a'\n[[boat]]\nnam='b'",
            ("unknown key `boat[1].nam`", "did you mean `boat[1].name`?"),
        ),
        ("[gate]\nqqqq = 1", ("unknown key `gate.qqqq`", "known here: colour, is_open, wait, width")),
    ],
)
def test_an_unknown_key_names_file_key_and_the_nearest_known_key(
    tmp_path: Path, toml: str, told: tuple[str, ...]
) -> None:
    """DESIGN 8: unknown keys are errors."""
    text = complaint(tmp_path, toml)

    assert all(part in text for part in told), text


@pytest.mark.parametrize(
    ("toml", "key", "accepted"),
    [
        ("[gate]\nwidth = 'wide'", "`gate.width`", "a whole number"),
        ("[gate]\nwidth = true", "`gate.width`", "a whole number"),
        ("[gate]\nis_open = 1", "`gate.is_open`", "true or false"),
        ("[gate]\ncolour = 'blue'", "`gate.colour`", 'one of "red", "green"'),
        ("[gate]\nwait = 3", "`gate.wait`", 'a duration such as "3s"'),
        ("gate = 3", "`gate`", "a table: [gate]"),
        ("[boat]\nname = 'a'", "`boat`", "an array of tables: [[boat]]"),
        ("[[boat]]\nname = 'a'\ncrew = ['x', 1]", "`boat[0].crew[1]`", "text in quotes"),
        ("[[boat]]\nname = 'a'\ncrew = []", "`boat[0].crew`", "a list, each item text in quotes"),
        ("[title]\nx = 1", "`title`", "text in quotes"),
    ],
)
def test_a_bad_value_names_file_key_and_the_accepted_form(
    tmp_path: Path, toml: str, key: str, accepted: str
) -> None:
    """DESIGN 8: a bad value names the key and the accepted form."""
    text = complaint(tmp_path, toml)

    assert "harbour.toml" in text
    assert f"{key} must be {accepted}" in text


def test_a_required_key_that_is_missing_is_named(tmp_path: Path) -> None:
    """DESIGN 8."""
    assert "`boat[0]` has no `name`" in complaint(tmp_path, "[[boat]]\nlength = 3")


def test_an_unknown_variable_of_ours_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    """DESIGN 8: a misspelt variable must not be a silent default."""
    text = complaint(tmp_path, TIDEGATE_GATE_WIDTH="3")

    assert "TIDEGATE_GATE_WIDTH is not a setting" in text
    assert "did you mean TIDEGATE_GATE__WIDTH?" in text


def test_a_bad_value_from_the_environment_names_the_variable(tmp_path: Path) -> None:
    """DESIGN 8: the complaint names where the value came from, not the file."""
    text = complaint(tmp_path, "[gate]\nwidth = 3", TIDEGATE_GATE__WIDTH="wide")

    assert "environment variable TIDEGATE_GATE__WIDTH" in text
    assert "harbour.toml" not in text


def test_variables_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    """DESIGN 8: only our prefix concerns us."""
    assert harbour(tmp_path, WIDTH="x", TIDEGATED="x") == Harbour()


def test_a_file_that_is_given_must_exist(tmp_path: Path) -> None:
    """DESIGN 9: wrong usage is told, never guessed around."""
    with pytest.raises(UsageError, match=r"nowhere\.toml does not exist"):
        read_settings(Harbour, file=tmp_path / "nowhere.toml", environment={}, command_line={})


@pytest.mark.parametrize("content", [b"[gate", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """DESIGN 8."""
    file = tmp_path / "broken.toml"
    file.write_bytes(content)

    with pytest.raises(UsageError, match=r"broken\.toml is not"):
        read_settings(Harbour, file=file, environment={}, command_line={})


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(
        Harbour,
        title=TEXT,
        boat=st.lists(st.builds(Boat, name=TEXT, crew=st.lists(TEXT).map(tuple))).map(tuple),
    )
)
def test_settings_that_are_shown_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, read: Harbour
) -> None:
    """DESIGN 9: `config show` prints a configuration that can be used; any text survives."""
    file = tmp_path_factory.getbasetemp() / "shown.toml"
    file.write_text(show_settings(read))

    assert read_settings(Harbour, file=file, environment={}, command_line={}) == read
