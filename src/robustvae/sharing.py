"""Models and audits for others: a folder with a card, and the way to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from robustvae.arguments import checked
from robustvae.errors import ConfigError, MissingExtraError, StorageError, install_command
from robustvae.models import VAE, checkpoint
from robustvae.records import Record, check_owned, write_files
from robustvae.records.files import check_sign, with_manifest
from robustvae.report.cards import key_numbers
from robustvae.report.compare import question_in_words
from robustvae.report.files import contents_of

AUDIT = "audit"
CARD = "README.md"
_SIGN = "library_name: robustvae"


@checked()
def card(
    record: Record | None = None, *, name: str = "", facts: dict[str, Any] | None = None
) -> str:
    """A model's card in markdown, with its robustness where an audit is given.

    Args:
        record: An audit of it.
        name: Of the model; the record's by default.
        facts: What else the card should say.

    Examples:
        >>> from robustvae.sharing import card
        >>> print(card(name="mine", facts={"data": "digits"}).splitlines()[-1])
        - data: digits
    """
    title = name or (record.model.name if record is not None else "model")
    tags = ["robustvae", "variational-autoencoder", "adversarial-robustness"]
    lines = ["---", _SIGN, "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    lines.append(f"# {_line(title)}")
    if record is not None:
        lines += ["", *_robustness(record)]
    if facts:
        lines += ["", *(f"- {_line(key)}: {_line(value)}" for key, value in facts.items())]
    return "\n".join(lines) + "\n"


def _robustness(record: Record) -> list[str]:
    lines = [_line(record.verdict.first), "", f"Question: {question_in_words(record)}.", ""]
    lines += ["| | mean | 95 % interval | inputs | unit |", "|---|---:|---|---:|---|"]
    for entry in key_numbers(record):
        cells = (_line(entry.label), entry.shown, entry.interval, str(entry.n), entry.unit)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"The audit lies in `{AUDIT}/`; `robustvae verify {AUDIT}` computes it again."]
    if record.command:
        lines.append(f"It was made by `{_line(record.command)}`.")
    return lines


def _line(text: Any) -> str:
    """Text on one line of a table, without what markdown would read as a cell's end or a tag."""
    return " ".join(str(text).split()).replace("|", r"\|").replace("<", "&lt;")


@checked()
def export(
    folder: str | Path,
    *,
    model: VAE | None = None,
    record: Record | None = None,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Write a model, an audit or both into a folder with a card, as the Hub wants them.

    Args:
        folder: Where to.
        model: A model that can be saved; it becomes a checkpoint that `rv.load` reads.
        record: An audit; it becomes a report in `audit/`.
        facts: What else the card should say.

    Returns:
        The folder.

    Raises:
        ConfigError: Neither a model nor a record.
        StorageError: The folder cannot be written to, or holds somebody else's files.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> from robustvae.sharing import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export(folder, model=rv.load("digits-vae"))
        ...     rv.load(folder).latent
        16
    """
    if model is None and record is None:
        raise ConfigError("export wants a model or a record, got neither: give model= or record=")
    folder = Path(folder)
    check_sign(folder / CARD, _SIGN)
    files: dict[str | Path, bytes] = {}
    stale: list[Path] = []
    if model is not None:
        checkpoint.check_place(folder)
        files |= {folder / key: content for key, content in checkpoint.contents(model).items()}
    if record is not None:
        contents, names = contents_of(record)
        check_owned(folder / AUDIT, contents)
        files |= with_manifest(folder / AUDIT, contents)
        stale = [folder / AUDIT / key for key in names]
    name = (
        ""
        if record is not None
        else str(model.config.get("architecture", "model"))
        if model
        else ""
    )
    files[folder / CARD] = card(record, name=name, facts=facts).encode()
    write_files(files, stale)  # at once: no card beside another model or another audit
    return folder


@checked()
def push_to_hub(
    repository: str,
    *,
    model: VAE | None = None,
    record: Record | None = None,
    facts: dict[str, Any] | None = None,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Send a model, an audit or both to the Hugging Face Hub, with a card.

    Nothing is sent that `export` does not write.

    Args:
        repository: "owner/name"; made where it is missing.
        model: A model that can be saved.
        record: An audit.
        facts: What else the card should say.
        private: Whether a repository that is made is private.
        token: Of the Hub; by default the one that its own client has stored.

    Returns:
        The address of the commit.

    Raises:
        MissingExtraError: Without the extra `hub`.
        ConfigError: Neither a model nor a record, or a name that no repository can have.
        StorageError: The Hub refused, or cannot be reached.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise ConfigError(f"repository must be owner/name, got {repository!r}")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError(
            f"push_to_hub needs the Hub's client: {install_command('hub')}"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        export(folder, model=model, record=record, facts=facts)
        hub = HfApi(token=token)
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            answer = hub.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="robustvae"
            )
        except Exception as error:  # the Hub's client raises many kinds, from network to permission
            line = " ".join(str(error).split())[:160]
            raise StorageError(f"{repository} could not be sent to the Hub: {line}") from None
    return str(getattr(answer, "commit_url", answer))


@checked()
def manifest_of(folder: str | Path) -> dict[str, int]:
    """Every file of an exported folder with its size in bytes, for a look before it is sent.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> from robustvae.sharing import export, manifest_of
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(manifest_of(export(folder, model=rv.load("digits-vae"))))
        ['README.md', 'config.json', 'model.safetensors']
    """
    root = Path(folder)
    return {
        path.relative_to(root).as_posix(): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
