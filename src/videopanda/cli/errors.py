"""Error handling of the command: a user error becomes one line on stderr that names the fix, and exit code 2."""

import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

UsageError: Any = typer.BadParameter.__mro__[1]  # typer exports only this subclass of it
NoArgsIsHelpError: Any = sys.modules[UsageError.__module__].NoArgsIsHelpError

# The extra that installs each optional module.
_EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "multipart", "prometheus_client", "websockets"), "serve"),
    **dict.fromkeys(("peft", "torchdata", "sentencepiece", "google", "tensorboard", "matplotlib"), "train"),
    **dict.fromkeys(("openai", "pyarrow"), "eval"),
    **{"torchcodec": "video", "ray": "ray", "deepspeed": "deepspeed", "bitsandbytes": "qlora", "panda3d": "worlds"},
    "mcp": "mcp",
    **dict.fromkeys(("trackio", "wandb"), "loggers"),
}


# pydantic's words for a wrong number, and ours.
_REASONS = (
    (r"Input should be a valid integer.*", "must be an integer"),
    (r"Input should be a valid number.*", "must be a number"),
    (r"Input should be greater than or equal to ", "must be at least "),
    (r"Input should be less than or equal to ", "must be at most "),
)


_CLOSING = {"“": "”", "„": "“", "‘": "’", "«": "»"}  # of quotation marks that a shell does not know


def check_words(words: Sequence[str]) -> None:
    """Refuse what text editors make of quotes and dashes, and an option with an empty value.

    Raises:
        ValueError: see above.
    """
    for before, word in zip(["", *words], words):
        if word[:1] in _CLOSING and _CLOSING[word[0]] not in word[1:]:
            raise ValueError(f'{word} begins with {word[0]}, which is no quotation mark for the shell: type "')
        if dash := re.match(r"[–—−][–—−-]*(?=[a-z])", word):
            raise ValueError(f"{word} begins with a long dash: type --{word[dash.end() :]}")
        if word == "" and before.startswith("--") and "=" not in before:
            raise ValueError(f"the value after {before} is empty: write one, or omit {before}")


def run(app: typer.Typer) -> None:
    """Run the command and exit."""
    try:
        check_words(sys.argv[1:])
        code = app(prog_name="videopanda", standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except NoArgsIsHelpError:  # the help is printed
        sys.exit(2)
    except (UsageError, *_user_errors()) as error:
        line = _explained(error)
        if line is None:
            raise
        print(f"videopanda: error: {line}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _user_errors() -> tuple[type[Exception], ...]:
    """Exceptions that users can cause; those of torch only if torch is already imported."""
    found: list[type[Exception]] = [ValueError, OSError, ImportError, MemoryError]
    for module, name in (
        ("videopanda.video.read", "VideoReadError"),
        ("safetensors", "SafetensorError"),
        ("torch", "OutOfMemoryError"),
        ("jinja2", "TemplateError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _explained(error: Exception) -> str | None:
    """The line for the user; None for a bug in this program."""
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, ImportError):
        if (error.path or "").endswith((".so", ".pyd")):  # compiled for another machine, or what it needs is missing
            return f"a package cannot be loaded ({error}): videopanda doctor  shows which one, and the fix"
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        return extra and f"this needs {error.name}: pip install 'videopanda[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        is_full = error.errno == errno.ENOSPC and error.filename2  # of a copy, where the second is the new file
        file = error.filename2 if is_full else error.filename
        return error.strerror if file is None else f"{file}: {error.strerror}"
    reason = str(error).strip().splitlines()
    if "jinja2" in sys.modules and isinstance(error, sys.modules["jinja2"].TemplateError):
        return f"the chat template of the model cannot be used: {reason[0] if reason else type(error).__name__}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {reason[0] if reason else 'use fewer frames or a smaller batch'}"
    return reason[0] if reason else type(error).__name__


def _usage(error: Any) -> str:
    """What is wrong with the command line, and the valid alternatives."""
    text = " ".join(error.format_message().split()).replace("Value error, ", "")  # a prefix of pydantic
    if bad := re.fullmatch(r"Invalid value for '(--[\w-]+)': (.*)", text):
        reason = bad[2]
        if choices := re.fullmatch(r"('.*') is not one of (.*)\.", reason):
            *most, last = re.findall(r"'([\w-]+)'", choices[2])
            return f"{bad[1]} must be {', '.join(most)} or {last}, got {choices[1]}"
        for words, plain in _REASONS:
            reason = re.sub(words, plain, reason)
        return f"{bad[1]} {reason}" if reason != bad[2] else f"{bad[1]}: {reason}"
    command = error.ctx.command if error.ctx else None
    if command is None:
        return text
    if (option := re.match(r"No such option: --([\w-]+)", text)) and (hint := _instead(option[1], command)):
        return f"{option[0]}; {hint}"
    if "Did you mean" in text or "ossible options" in text:
        return text
    text = text.rstrip(".")
    if text.startswith("No such command"):
        return f"{text}; choose from {', '.join(sorted(command.commands))}"
    if text.startswith("No such option"):
        if files := [word for word in sys.argv[1:] if word.startswith("-") and Path(word).exists()]:
            return f"{text}; a file whose name begins with a dash is written ./{files[0]}"
        options = [param.opts[0] for param in command.params if param.opts[0].startswith("--")]
        return f"{text}; choose from {', '.join(options)}"
    if text.startswith("Got unexpected extra argument") and _WORDS & {param.name for param in command.params}:
        return f"{text}; write a text of several words in quotes"
    return f"{text}; see  {error.ctx.command_path} --help"


_WORDS = {"question", "description"}  # arguments that are sentences
_TRAINING = ("train", "finetune", "teach")  # commands whose settings are given with --set


def _instead(option: str, command: Any) -> str:
    """How to say what was meant by an option that does not exist; empty if that is not known."""
    arguments = [param.name for param in command.params if param.param_type_name == "argument"]
    if option in arguments:
        return f"write only its value:  videopanda {command.name} {' '.join(name.upper() for name in arguments)}"
    if command.name not in _TRAINING or any(f"--{option}" in name for param in command.params for name in param.opts):
        return ""
    if option == "resume":
        return "the same command resumes an interrupted run"
    return f"a setting of training is written  --set {option.replace('-', '_')}=VALUE"
