"""Generate the parts of the documentation that follow from the code.

    python scripts/generate_docs.py          # writes docs/reference and the maps of docs/api
    python scripts/generate_docs.py --check  # exits with 1 where a page is not what the code says

The command-line reference is read off the commands as typer sees them; the map at the head of every
page of docs/api off the package's own exports and their first docstring lines.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustvae.cli import parser as commands

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference" / "command-line.md"
PACKAGE = ROOT / "src" / "robustvae"
BEGIN, END = "<!-- map: begin -->", "<!-- map: end -->"
_FIRST = re.compile(r"(.+?)(?:\n\s*\n|\Z)", re.DOTALL)


def command_line() -> str:
    """The reference page of all commands."""
    group = commands._Commands(name="robustvae")
    lines = [
        "# Command line",
        "",
        "This page is generated from the commands themselves: `python scripts/generate_docs.py`.",
        "",
        "Exit codes: 0 done; 1 a requirement or a check of the evidence failed; 2 wrong use, said "
        "in one line; 130 interrupted. `robustvae` and `python -m robustvae` are the same.",
        "",
        "| Command | What it does |",
        "|---|---|",
    ]
    for name in commands.command_names():
        lines.append(f"| [`{name}`](#robustvae-{name}) | {_cell(commands.summary(name))} |")
    for name in commands.command_names():
        command = group.get_command(None, name)
        members = getattr(command, "commands", None)
        lines += ["", f"## robustvae {name}", ""]
        if members is None:
            lines += _command(f"robustvae {name}", command)
            continue
        lines += [_text(command.help)]
        for inner, member in members.items():
            lines += ["", f"### robustvae {name} {inner}", ""]
            lines += _command(f"robustvae {name} {inner}", member)
    return "\n".join(lines) + "\n"


def _command(line: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name != "argument"]
    words = " ".join(_argument(one) for one in arguments)
    yield f"```\n{line}{' ' * bool(words)}{words}{' [OPTIONS]' if options else ''}\n```"
    yield ""
    about, _, examples = (command.help or "").partition("Examples:")
    yield _text(about)
    if arguments or options:
        yield ""
        yield "| | Default | |"
        yield "|---|---|---|"
    for one in (*arguments, *options):
        name = _argument(one) if one in arguments else ", ".join(one.opts)
        yield f"| `{name}` | {_default(one)} | {_cell(getattr(one, 'help', '') or '')} |"
    calls = [call.strip() for call in examples.splitlines() if call.strip().startswith("robustvae")]
    if calls:
        yield ""
        yield "```sh"
        yield from calls
        yield "```"


def _argument(one: Any) -> str:
    name = one.name.upper() + ("..." if one.nargs == -1 else "")
    return name if one.required else f"[{name}]"


def _default(one: Any) -> str:
    value = getattr(one, "default", None)
    if one.required:
        return "required"
    if value is None or value is False or value == () or value == [] or callable(value):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _text(text: str | None) -> str:
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def api_map(module: str) -> str:
    """The table of a module's public names, each with its first docstring line."""
    rows = [f"| `{name}` | {_cell(summary)} |" for name, summary in _members(module)]
    if not rows:
        return ""
    return "\n".join([BEGIN, "", "| Name | What it is |", "|---|---|", *rows, "", END])


def _members(module: str) -> Iterator[tuple[str, str]]:
    """Public names of a module, in the order of its `__all__` or of its source."""
    path = PACKAGE / f"{module}.py"
    path = path if path.is_file() else PACKAGE / module / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exports = _exports(tree)
    if exports is None:
        exports = [node.name for node in tree.body if _is_public(node)]
    import importlib

    home = importlib.import_module(f"robustvae.{module}")
    for name in exports:
        value = getattr(home, name)
        if getattr(value, "__name__", None) == f"robustvae.{module}.{name}":
            continue  # a module, which has a page of its own or none
        own = isinstance(value, type) or callable(value)
        first = _FIRST.match((value.__doc__ or "").strip()) if own else None
        yield name, " ".join(first[1].split()) if first else "a constant"


def _is_public(node: ast.AST) -> bool:
    kinds = ast.ClassDef | ast.FunctionDef
    return isinstance(node, kinds) and not node.name.startswith("_")


def _exports(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    texts = {REFERENCE: command_line()}
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        table = api_map(page.stem)
        if BEGIN in text:
            head, tail = text.split(BEGIN)[0], text.split(END)[1]
            texts[page] = f"{head}{table}{tail}"
        else:
            head, mark, tail = text.partition("::: ")
            texts[page] = f"{head}{table}\n\n{mark}{tail}" if table else text
    return texts


def main() -> int:
    """Write the pages, or compare them."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--check", action="store_true", help="compare, write nothing")
    check = reader.parse_args().check
    stale = []
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
