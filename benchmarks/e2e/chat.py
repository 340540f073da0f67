"""Text to ids and back as a checkpoint's folder says it: its tokenizer, its chat template, its special tokens."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from benchmarks.e2e.checkpoint import CheckpointError, json_object

TOKENIZER, TOKENIZER_CONFIG, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
TEMPLATE = "chat_template.jinja"  # where newer folders have it, instead of in the tokenizer's configuration
LLADA2_MASK_ID = 156895  # of LLaDA2.0, whose files need not say it


class Generation(Extension):
    """`{% generation %}`, between which transformers looks for what a model is to learn: here its content as it is."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@dataclass(frozen=True)
class Chat:
    """How questions become ids for a model, and its ids text."""

    tokenizer: Tokenizer
    template: Template
    special_tokens: dict[str, str]  # by the names that templates use, such as bos_token
    eos_id: int
    mask_id: int

    @classmethod
    def load(cls, folder: Path) -> Chat:
        """Of a folder in Hugging Face's layout. The ids of mask and end come from `config.json` where it has them, else
        from the tokens that `tokenizer_config.json` names; the mask's, where neither says it, is LLaDA2.0's.

        Raises:
            CheckpointError: a file is missing or cannot be read, or there is no template, no end, or no such mask.
        """
        tokenizer = _tokenizer(folder / TOKENIZER)
        said = json_object(folder / TOKENIZER_CONFIG)
        config = json_object(folder / CONFIG) if (folder / CONFIG).exists() else {}
        return cls(
            tokenizer=tokenizer,
            template=_template(folder, said),
            special_tokens=_special_tokens(said),
            eos_id=_eos_id(folder, tokenizer, said, config),
            mask_id=_mask_id(folder, tokenizer, said, config),
        )

    def prompt_ids(self, question: str) -> list[int]:
        """The ids of a conversation that a user's question starts, up to where the model's answer begins.

        Raises:
            CheckpointError: the template refuses the conversation.
        """
        messages = [{"role": "user", "content": question}]
        try:
            text = self.template.render(messages=messages, add_generation_prompt=True, **self.special_tokens)
        except TemplateError as error:
            raise CheckpointError(f"chat_template: expected one that takes a user's message; {error}") from error
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """Of the ids before the first end, without special tokens."""
        answer = list(ids)
        if self.eos_id in answer:
            answer = answer[: answer.index(self.eos_id)]
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{path}: expected a tokenizer of the tokenizers library; {error}") from error


def _template(folder: Path, said: dict[str, Any]) -> Template:
    path, source = folder / TOKENIZER_CONFIG, said.get("chat_template")
    if (folder / TEMPLATE).exists():
        path = folder / TEMPLATE
        source = path.read_text(encoding="utf-8")
    if not isinstance(source, str):
        raise CheckpointError(f"{path}: chat_template: expected a template's text; got {source!r}")
    # With what transformers adds to the language.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes HTML
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError(f"{path}: chat_template: expected a Jinja template; {error}") from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _special_tokens(said: dict[str, Any]) -> dict[str, str]:
    """By name; a token stands in the file as text, or as an object that has it for its content."""
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in said.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _eos_id(folder: Path, tokenizer: Tokenizer, said: dict[str, Any], config: dict[str, Any]) -> int:
    found = _named_id("eos_token", folder, tokenizer, said, config)
    if found is None:
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG}: expected an eos_token, or eos_token_id in {CONFIG}; got neither"
        )
    return found


def _mask_id(folder: Path, tokenizer: Tokenizer, said: dict[str, Any], config: dict[str, Any]) -> int:
    found = _named_id("mask_token", folder, tokenizer, said, config)
    if found is None and tokenizer.id_to_token(LLADA2_MASK_ID) is None:
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG}: expected a mask_token, or mask_token_id in {CONFIG}; got neither, and the "
            f"tokenizer has no token {LLADA2_MASK_ID}, which is LLaDA2.0's mask"
        )
    return LLADA2_MASK_ID if found is None else found


def _named_id(
    name: str, folder: Path, tokenizer: Tokenizer, said: dict[str, Any], config: dict[str, Any]
) -> int | None:
    given = config.get(f"{name}_id")
    if type(given) is int:  # which True is not
        return given
    if given is not None:
        raise CheckpointError(f"{folder / CONFIG}: {name}_id: expected a token's id; got {given!r}")
    token = _special_tokens(said).get(name)
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(f"{folder / TOKENIZER_CONFIG}: {name}: expected a token of {TOKENIZER}; got {token!r}")
    return int(found)
