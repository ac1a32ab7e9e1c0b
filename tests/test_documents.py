"""What the documentation tells people to type: every command parses, every target and script exists, examples run."""

import argparse
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

from infobert_fast.cli import COMMANDS
from infobert_fast.cli.train import parse_training

DOCUMENTS = sorted(map(str, [*Path().glob("*.md"), *Path("docs").glob("*.md"), *Path("benchmarks").glob("*.md")]))
COMMAND = re.compile(r"(?:.* )?infobert_fast\.cli (.*)|infobert (.*)")


def commands(document):
    """The indented lines of a page that name a program, continued lines joined, comments off, variables filled in."""
    text = Path(document).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in re.findall(r"^ {4}\S.*", text, flags=re.MULTILINE)]
    variables = dict(re.findall(r'^([A-Z]+)="(.*)"$', "\n".join(lines), flags=re.MULTILINE))
    for line in lines:
        for _ in range(2):  # a variable may hold another
            line = re.sub(r"\$([A-Z]+)\b", lambda match: variables.get(match[1], match[0]), line)
        yield re.sub(r"\s#.*", "", line).replace("$", "")


def ours():
    """(page, arguments) of each command of this package; where a page shows alternatives, of the last."""
    for document in DOCUMENTS:
        for line in commands(document):
            if match := COMMAND.fullmatch(line):
                arguments = shlex.split(match[1] or match[2])
                # words joined by | are alternatives; an NLI pair's ||| stands between spaces
                yield (
                    document,
                    [re.sub(r"^\w+(\|\w+)+$", lambda m: m[0].rpartition("|")[2], word) for word in arguments],
                )


OURS = list(ours())


class ParsedError(Exception):
    pass


@pytest.mark.parametrize(("document", "arguments"), OURS, ids=lambda value: " ".join(value)[:60])
def test_commands_parse(document, arguments, monkeypatch, tmp_path):
    command, *rest = arguments
    assert command in COMMANDS, document
    if command == "train" and "--help" not in rest:
        rest = ["examples/nli.yaml" if word == "CONFIG.yaml" else word for word in rest]
        parse_training([*rest, "--output_dir", str(tmp_path), "--use_cpu", "True"])
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises(ParsedError):
        importlib.import_module(f"infobert_fast.cli.{command}").prepare(rest)


def test_every_command_is_documented():
    assert {arguments[0] for _, arguments in OURS} == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_and_scripts_exist(document):
    makefile = Path("Makefile").read_text()
    for line in commands(document):
        word, *rest = line.split() or [""]
        if word == "make" and rest:
            target = next(name for name in rest if "=" not in name)
            assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), line
        elif word in ("python", "bash") and rest and rest[0].endswith((".py", ".sh", "run")):
            assert Path(rest[0]).is_file(), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples(document):
    """Examples that import torch run as they stand; others, whose model is the reader's, compile."""
    for code in re.findall(
        r"^```python\n(.*?)^```", Path(document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        program = compile(code, document, "exec")
        if code.startswith("import torch\n"):
            exec(program, {})


def test_public_names_are_listed():
    text = Path("docs/api.md").read_text(encoding="utf-8")
    for section in text.split("\n## `")[1:]:
        module = importlib.import_module(section.split("`")[0])
        public = {
            name
            for name in module.__all__
            if inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value)
        }
        assert public <= set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)), module.__name__
