"""Every printed `tarkit ...` command is one that the program would accept; none is invoked.

A command's words are given to typer's own parser, command by command, up to the point where the
function would be called. (Appending --help would hide bad values.)
"""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from tarkit.cli.app import app
from tarkit.config import Config, load_config
from tarkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md"))]
SCRIPTS = sorted((ROOT / "pipelines").rglob("*.sh"))
ENDS_A_COMMAND = {
    "|",
    "||",
    "&&",
    "&",
    ";",
    ";;",
    "(",
    ")",
    "{",
    "}",
    "do",
    "then",
    "else",
    "if",
    "!",
}
SPEAKS_OF_IT = set("echo printf cd pip from import ls rm git test [ [[".split())
REDIRECTIONS = {">", ">>", "<", "2>", "&>", "2>&1", ">&2", ">&"}

ConfigClass = Callable[[str], type[Config]]


@dataclass(frozen=True)
class Command:
    """The words after `tarkit`, and where they stand."""

    place: str
    words: tuple[str, ...]


# ---- finding the commands -----------------------------------------------------------------------


def commands_of(text: str, place: str, variables: dict[str, str]) -> Iterator[Command]:
    """Every `tarkit` command of a piece of shell, its variables put in."""
    for number, line in logical_lines(text):
        for name, value in re.findall(r"^\s*(?:export |local )?(\w+)=(\S.*)$", line):
            variables[name] = assigned(value, variables)
        for name, first in re.findall(r"\bfor (\w+) in (\S+)", line):
            variables[name] = put_in(first.strip(";"), variables)
        for words in statements(line):
            # Behind `time`, `nice -n 10`, `A=1` or a function of the script's own as well.
            starts = [i for i, word in enumerate(words) if is_program(word)]
            if starts and (starts[0] == 0 or words[0] not in SPEAKS_OF_IT):
                spoken = [put_in(word, variables) for word in words[starts[0] + 1 :]]
                yield Command(f"{place}:{number}", tuple(word for word in spoken if word))


def is_program(word: str) -> bool:
    """Whether a word is the program, and not a folder of its name."""
    return Path(word).name == "tarkit" and not word.endswith("/")


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line), continued lines joined."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        first = first if joined else number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        yield first, joined + line
        joined = ""


def statements(line: str) -> Iterator[list[str]]:
    """The simple commands of a line as words, without redirections and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    # Braces and the rest belong to words such as ${work}/ta_tok and a@b.
    lexer.wordchars += "${}@%^!,:[]"
    lexer.commenters = "#"
    try:
        tokens = list(lexer)
    except ValueError:  # a quotation that goes on over lines
        assert not re.search(r"\btarkit [a-z]", line), f"cannot read the command in: {line}"
        return
    words: list[str] = []
    skip = False
    for token in tokens:
        if skip:
            skip = False
        elif token in REDIRECTIONS:
            words = words[:-1] if words and words[-1] in ("1", "2") else words
            skip = True
        elif token in ENDS_A_COMMAND:
            yield words
            words = []
        else:
            words.append(token)
    yield words


def assigned(value: str, variables: dict[str, str]) -> str:
    """What a script's assignment amounts to for reading its commands."""
    if "dirname" in value:  # the usual way to name the script's own folder
        up = len(re.findall(r"/\.\.", value))
        folder = Path(variables["script_dir"])
        return str(folder.parents[up - 1] if up else folder)
    words = value.split("#")[0].strip().strip("\"'")
    return put_in(words, variables)


def put_in(word: str, variables: dict[str, str]) -> str:
    """`word` with its variables; an argument of the script is its default, "$@" is nothing."""
    word = re.sub(r"\$\{?[@*]\}?|\$\{\w+\[@\][^}]*\}", "", word)
    word = re.sub(r"\$\{\w+:-([^}$]*)\}", r"\1", word)
    word = re.sub(r"\$\(\([^)]*\)\)", "1", word)  # arithmetic
    word = re.sub(r"\$\([^)]*\)", "value", word)
    return re.sub(
        r"\$\{?(\w+)[^}/\s\"']*\}?" if "${" in word else r"\$(\w+)",
        lambda found: variables.get(found[1], "value"),
        word,
    )


def page_commands(path: Path) -> list[Command]:
    """The commands in the code blocks of a page."""
    name = str(path.relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    found: list[Command] = []
    for block in re.finditer(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: block.start(1)].count("\n")
        for command in commands_of(block[1], name, {}):
            number = int(command.place.rsplit(":", 1)[1])
            found.append(Command(f"{name}:{line + number}", command.words))
    return found


def script_commands(path: Path) -> list[Command]:
    place = str(path.relative_to(ROOT))
    variables = {"script_dir": str(path.parent.relative_to(ROOT))}
    return list(commands_of(path.read_text(encoding="utf-8"), place, variables))


# ---- understanding them -------------------------------------------------------------------------


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


def understood(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """(the command's path, its arguments), as typer reads the words; raises what typer raises."""
    command = program()
    context = None
    path: list[str] = []
    name: str | None = "tarkit"
    rest = list(words)
    while isinstance(command, TyperGroup):
        context = command.make_context(name, rest, parent=context)
        if command.invoke_without_command and not [*context._protected_args, *context.args]:
            return " ".join([*path, str(name)]), dict(context.params)
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        path.append(str(name))
    context = command.make_context(name, rest, parent=context)
    return " ".join(path), dict(context.params)


# Commands that read numbers, by the name that their TOMLs have.
NUMBERS = {
    "curate render": "render",
    "curate ingest": "ingest",
    "curate download": "download",
    "curate chats": "chats",
    "encode": "encode",
    "train vqvae": "vqvae",
    "train encoder": "encoder",
    "train tokenizer": "tokenizer",
    "train ar-dtok": "ar_dtok",
    "train dif-dtok": "dif_dtok",
    "train mllm": "mllm",
    "train grpo": "grpo",
    "assemble": "assemble",
}

COMMANDS = [command for path in PAGES for command in page_commands(path)]
COMMANDS += [command for path in SCRIPTS for command in script_commands(path)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_printed_command_is_accepted(
    command: Command, monkeypatch: pytest.MonkeyPatch, config_class: ConfigClass
) -> None:
    monkeypatch.chdir(ROOT)
    path, arguments = understood(command.words)
    # A training without a TOML takes the settings of a recipe.
    if path in NUMBERS and (arguments["config"] or not path.startswith("train ")):
        load_config(config_class(NUMBERS[path]), arguments["config"], arguments["overrides"] or ())


def test_readme_and_pipelines_show_the_whole_chain() -> None:
    shown = {" ".join(command.words[:2]) for command in COMMANDS}
    stages = {f"train {part}" for part in ("vqvae", "encoder", "tokenizer", "ar-dtok", "mllm")}
    assert stages | {"curate render", "curate chats", "eval shapes"} <= shown
    assert any(command.place.startswith("README.md") for command in COMMANDS)
    for folder in ("smoke", "mini", "paper"):
        assert any(command.place.startswith(f"pipelines/{folder}/") for command in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_files_and_headings_that_exist(page: Path) -> None:
    for name, _, heading in (
        link.partition("#")
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            slugs = {
                re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles
            }
            assert heading in slugs, f"{page.name} links to {name}#{heading}"


@pytest.mark.parametrize(
    "line",
    [
        "tarkit encod work/pictures --tokenizer t --out o",
        "tarkit encode work/pictures --tokenizer t --out o --limits 3",
        "tarkit encode work/pictures --tokenizer t --out o --limit three",
        "tarkit encode work/pictures more --tokenizer t --out o",
        "tarkit encode work/pictures --tokenizer t",
        "tarkit train vqvae pipelines/gone.toml --images i --out o",
        "tarkit generate 'a ring' --out o.png --scale 4",
        "tarkit",
    ],
)
def test_a_wrong_command_would_be_noticed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = commands_of(line, "here", {})
    with pytest.raises(typer.TyperException):
        understood(command.words)


def test_a_wrong_number_would_be_noticed(config_class: ConfigClass) -> None:
    (command,) = commands_of("tarkit encode p --tokenizer t --out o --set batchsize=3", "here", {})
    path, arguments = understood(command.words)
    with pytest.raises(UserError, match="batchsize"):
        load_config(config_class(NUMBERS[path]), None, arguments["overrides"])


SCRIPT = """#!/usr/bin/env bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/smoke}
steps=20  # few
# tarkit commented out
time tarkit train vqvae "$here/vqvae.toml" \\
    --images "$work/pictures" --set steps=$steps --out "${work}/vqvae" 2>&1 | tee log
for scale in 2 3; do tarkit generate "a ring" --scale $scale --out x.png "$@" > /dev/null; done
run "a step" tarkit version
cd / && nice -n 10 tarkit inspect "$work" || echo "tarkit failed"
"""


def test_the_commands_of_a_script_are_found_with_their_variables() -> None:
    found = list(commands_of(SCRIPT, "run.sh", {"script_dir": "pipelines/smoke"}))
    assert [command.place for command in found] == [f"run.sh:{line}" for line in (6, 8, 9, 10)]
    assert found[0].words == (
        *("train", "vqvae", "pipelines/smoke/vqvae.toml", "--images", "work/smoke/pictures"),
        *("--set", "steps=20", "--out", "work/smoke/vqvae"),
    )
    assert found[1].words == ("generate", "a ring", "--scale", "2", "--out", "x.png")
    assert found[2].words == ("version",)
    assert found[3].words == ("inspect", "work/smoke")
