"""Questions to ids and ids to text, as the files of a folder say."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.e2e.chat import Chat
from benchmarks.e2e.checkpoint import CheckpointError
from benchmarks.e2e.problems import generate
from benchmarks.e2e.train import build_tokenizer, write_tokenizer

# In the manner of LLaDA2's own: roles by other names, a system's message first, tokens by name.
TEMPLATE = """{% if messages[0].role != "system" %}
<role>SYSTEM</role>thinking off<|role_end|>
{%- endif %}
{% for message in messages %}
    {%- if message.role == "user" %}
<role>HUMAN</role>{{ message.content }}<|role_end|>
    {%- elif message.role == "assistant" %}
<role>ASSISTANT</role>{{ message.content }}{{ eos_token }}
    {%- else %}
        {{- raise_exception("Unknown role: " ~ message.role) }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
<role>ASSISTANT</role>
{%- endif %}"""
PROMPT = (
    "<role> SYSTEM </role> thinking off <|role_end|> <role> HUMAN </role> how many <|role_end|> "
    "<role> ASSISTANT </role>"
)
WORDS = ["[UNK]", "SYSTEM", "HUMAN", "ASSISTANT", "thinking", "off", "how", "many", "seven"]
SPECIAL = ["<role>", "</role>", "<|role_end|>", "<|endoftext|>", "<|startoftext|>", "<|mask|>"]
EOS, MASK = (len(WORDS) + SPECIAL.index(token) for token in ("<|endoftext|>", "<|mask|>"))
SAID = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "mask_token": {"content": "<|mask|>", "special": True},
    "add_bos_token": False,
    "chat_template": TEMPLATE,
}


def write(folder, config=None, **said):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = {name: value for name, value in (SAID | said).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def tokens(chat: Chat, ids: list[int]) -> str:
    return " ".join(chat.tokenizer.id_to_token(i) for i in ids)


def test_a_question_is_laid_out_by_the_template(tmp_path) -> None:
    chat = Chat.load(write(tmp_path))
    assert tokens(chat, chat.prompt_ids("how many")) == PROMPT


def test_a_template_may_have_a_file_of_its_own(tmp_path) -> None:
    write(tmp_path, chat_template=None)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}"
    )
    chat = Chat.load(tmp_path)
    assert tokens(chat, chat.prompt_ids("how many")) == "<|startoftext|> how many <|endoftext|>"


@pytest.mark.parametrize(
    ("template", "laid_out"),
    [
        ("{% for n in range(9) %}{% if n == 1 %}{% break %}{% endif %}how {% endfor %}many", "how many"),
        ("{% for n in range(3) %}{% if n != 1 %}{% continue %}{% endif %}how {% endfor %}many", "how many"),
        ("how {% generation %}{{ messages[0].content }}{% endgeneration %} off", "how seven off"),
        ("{% set a = 'how' %}{% generation %}{{ a }}{% set a = 'off' %} {% endgeneration %}{{ a }}", "how how"),
        ("{{ 'many' if strftime_now('%Y')|int > 2000 }}", "many"),
        ("{{ 'many' if '<é>' in ['<é>']|tojson }}", "many"),
    ],
)
def test_a_template_may_use_what_transformers_gives_it(template: str, laid_out: str, tmp_path) -> None:
    chat = Chat.load(write(tmp_path, chat_template=template))
    assert tokens(chat, chat.prompt_ids("seven")) == laid_out


def test_text_ends_before_the_end_and_has_no_special_tokens(tmp_path) -> None:
    chat = Chat.load(write(tmp_path))
    seven, off = WORDS.index("seven"), WORDS.index("off")
    assert chat.text([seven, MASK, off, EOS, seven]) == "seven off"
    assert chat.text([seven]) == "seven"
    assert chat.text([EOS, seven]) == chat.text([]) == ""


@pytest.mark.parametrize(
    ("config", "said", "ids"),
    [
        (None, {}, (EOS, MASK)),
        ({}, {}, (EOS, MASK)),
        ({"mask_token_id": 4, "eos_token_id": 5}, {}, (5, 4)),
        ({"mask_token_id": 4, "eos_token_id": 5}, {"mask_token": None, "eos_token": None}, (5, 4)),
        ({"mask_token_id": None, "eos_token_id": 0}, {}, (0, MASK)),
    ],
)
def test_ids_come_from_the_configuration_then_from_the_tokenizer(config, said, ids, tmp_path) -> None:
    chat = Chat.load(write(tmp_path, config, **said))
    assert (chat.eos_id, chat.mask_id) == ids


def test_the_mask_is_that_of_llada2_where_nothing_says_it(tmp_path) -> None:
    write(tmp_path, mask_token=None)
    vocabulary = {f"w{number}": number for number in range(156895)} | {"<|mask|>": 156895, "<|endoftext|>": 156896}
    Tokenizer(models.WordLevel(vocabulary)).save(str(tmp_path / "tokenizer.json"))
    assert Chat.load(tmp_path).mask_id == 156895


@pytest.mark.parametrize(
    ("config", "said", "message"),
    [
        (None, {"chat_template": None}, r"tokenizer_config.json: chat_template: expected a template's text; got None"),
        (None, {"chat_template": ["a"]}, r"tokenizer_config.json: chat_template: expected a template's text"),
        (None, {"chat_template": "{% if %}"}, r"tokenizer_config.json: chat_template: expected a Jinja template"),
        (None, {"eos_token": None}, r"tokenizer_config.json: expected an eos_token, or eos_token_id in config.json"),
        (None, {"eos_token": "<end>"}, r"tokenizer_config.json: eos_token: expected a token of tokenizer.json; got"),
        (None, {"mask_token": None}, r"tokenizer_config.json: expected a mask_token, or mask_token_id in config.json"),
        ({"mask_token_id": "9"}, {}, r"config.json: mask_token_id: expected a token's id; got '9'"),
        ({"mask_token_id": True}, {}, r"config.json: mask_token_id: expected a token's id; got True"),
        ({"eos_token_id": False}, {}, r"config.json: eos_token_id: expected a token's id; got False"),
        ([], {}, r"config.json: expected a JSON object; got list"),
    ],
)
def test_what_a_folder_does_not_say_is_named(config, said, message: str, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=message):
        Chat.load(write(tmp_path, config, **said))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path) -> None:
    write(tmp_path, {})
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name}: expected a"):
        Chat.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_missing_is_named(name: str, tmp_path) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: expected a"):
        Chat.load(tmp_path)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no users') }}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ nothing.at }}"],
)
def test_a_template_that_refuses_or_leaves_the_sandbox_is_an_error(template: str, tmp_path) -> None:
    chat = Chat.load(write(tmp_path, chat_template=template))
    with pytest.raises(CheckpointError, match="chat_template: expected one that takes a user's message"):
        chat.prompt_ids("how many")


def test_the_word_problems_come_back_from_their_ids(tmp_path) -> None:
    write_tokenizer(tmp_path)
    chat = Chat.load(tmp_path)
    for problem in generate(1000, 5, "held-out"):
        for text in (problem.question, problem.solution):
            assert chat.text(chat.tokenizer.encode(text).ids) == text
    ids = chat.prompt_ids("Ava has 12 zebras.\nHow many?")
    expected = ["<|user|>", "Ava", "has", "1", "2", "<|unk|>", ".", "\n", "How", "many", "?", "<|assistant|>"]
    assert [chat.tokenizer.id_to_token(i) for i in ids] == expected


def test_the_tokenizer_is_the_same_every_time() -> None:
    assert build_tokenizer().to_str() == build_tokenizer().to_str()
