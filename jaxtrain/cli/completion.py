"""`jaxtrain completion`: what a shell asks for when Tab is pressed. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from jaxtrain.cli.command import Command, Group, Option, Positional, choices_of, options_of
from jaxtrain.config_io import recipe_names

ASKED = "--complete"
"""The first word of a command line that asks for what may follow the others."""

_BASH = f"""_jaxtrain() {{
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(jaxtrain {ASKED} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null)" \\
        -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _jaxtrain jaxtrain"""
_ZSH = f"""_jaxtrain() {{
    local -a found
    found=(${{(f)"$(jaxtrain {ASKED} "${{(@)words[2,CURRENT]}}" 2>/dev/null)"}})
    compadd -a found || _files
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
compdef _jaxtrain jaxtrain"""
_SCRIPTS = {
    "bash": _BASH,
    "zsh": _ZSH,
    "fish": f"complete -c jaxtrain -a '(jaxtrain {ASKED} (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'",
}


class Completion(Command):
    """Print a script that completes commands, options and values: in ~/.bashrc, eval "$(jaxtrain completion bash)"; in
    ~/.zshrc the same with zsh; in ~/.config/fish/config.fish, jaxtrain completion fish | source."""

    shell: Annotated[Literal["bash", "zsh", "fish"], Positional("SHELL")]
    """bash, zsh or fish."""

    def run(self) -> None:
        """Print it."""
        print(_SCRIPTS[self.shell])


def candidates(what: type[Command] | Group, words: Sequence[str]) -> list[str]:
    """What the last of the words may become, given those before it."""
    if isinstance(what, Group):
        first, *rest = words or [""]
        if rest:
            return candidates(what.commands[first], rest) if first in what.commands else []
        return [*what.commands, "--help"]
    *before, current = words
    options = options_of(what)
    given = next((option for option in options if before and option.shown == before[-1]), None)
    if given is not None and (values := _values(given)):
        return values
    if current.startswith("-"):
        return ["--help", *(option.shown for option in options if not option.place)]
    return [value for option in options if option.place for value in _values(option)]


def _values(option: Option) -> list[str]:
    """The few words that it may be."""
    if option.path in ("config", "file"):
        return [name for name in recipe_names() if name.startswith("sweeps/") == (option.path == "file")]
    return list(choices_of(option)) or (["True", "False"] if bool in option.kinds else [])
