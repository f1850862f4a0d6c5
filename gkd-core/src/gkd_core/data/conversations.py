"""Find the columns of instruction data, and read them as conversations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.chat import ASSISTANT
from gkd_core.data.columns import TEXTS, pick_column
from gkd_core.data.labels import is_missing
from gkd_core.data.spooled_table import TableBuilder
from gkd_core.data.table import Table
from gkd_core.errors import DataError

MESSAGES = ("messages", "conversations", "conversation")
ANSWERED = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("input", "output"),
)
"""Usual names of a prompt and what is to be answered."""

PROMPTS = ("prompt", "instruction", "query")
"""Usual names of a prompt without an answer."""

ADDED = {"instruction": ("input", "context")}
"""Usual names of a text that belongs to a prompt, by the prompt's name."""

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools",)
ROLES = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT, "function_call": ASSISTANT}
"""Other names of roles, as in ShareGPT."""


@dataclass(frozen=True)
class ChatColumns:
    """Names of the columns of conversations.

    Attributes:
        text: The messages, or the prompts.
        target: The answers; None if there are none, or if they are among the messages.
        added: A text that belongs to the prompt.
        system: What the assistant is told first.
        tools: What it may call.
    """

    text: str
    target: str | None = None
    added: str | None = None
    system: str | None = None
    tools: str | None = None


def find_conversations(table: Table, config: TaskConfig) -> ChatColumns | None:
    """Return the columns of conversations in a table; None if it has plain text.

    Args:
        table: The training table.
        config: Names given by the user.

    Raises:
        DataError: The table has both conversations and a text, and nothing says which to read.
    """
    table.check_filled()
    found = _named(table, config) if config.text is not None else _usual(table, config)
    if found is None:
        return None
    if config.chat is False and found.target is None:
        raise DataError(
            f"{table.source} has messages or prompts alone in the column {found.text!r}, which "
            "only a chat template can write. Remove task.chat = false"
        )
    return found


def answered_columns(table: Table, columns: ChatColumns, config: TaskConfig) -> ChatColumns:
    """Return the columns of a table: those of the training data, which may lack its answers.

    Models may write the answers to train on; students are judged by those that are given.

    Args:
        table: The table.
        columns: The columns of the training data.
        config: Names given by the user.
    """
    own = find_conversations(table, config) if columns.target is None else None
    return own if own is not None and own.text == columns.text else columns


def read_conversations(table: Table, columns: ChatColumns, config: TaskConfig) -> Split:
    """Return the conversations of a table.

    Args:
        table: The table.
        columns: Its columns.
        config: The `task` table of the configuration.

    Raises:
        DataError: A column is missing, or a row is invalid.
    """
    table.check_filled()
    named = (columns.text, columns.target, columns.added, columns.system, columns.tools)
    names = [name for name in named if name is not None]
    for name in names:
        if name not in table.columns:
            raise DataError(
                f"{table.source} has no column {name!r}, which the training data has. Give a "
                "file with the same columns"
            )
    rows = TableBuilder(table.faults)
    for number, values in table.rows(names):
        rows.add(number, _row(table, columns, number, values))
    table.faults.check()
    found = rows.table()
    if "target" in found.columns and not all(isinstance(o, str) for o in found.columns["target"]):
        found = _joined_turns(found)
    return Split(
        found.columns["text"],
        target=found.columns.get("target"),
        chat=config.chat is not False,
        tools=found.columns.get("tools"),
    )


def _joined_turns(table: Table) -> Table:
    """Return rows of prompts and answers, some of several turns, as messages."""
    rows = TableBuilder(table.faults)
    for number, row in table.rows([*table.columns]):
        text, answer = row.pop("text"), row.pop("target")
        rows.add(number, {"text": _turns(text, "user") + _turns(answer, ASSISTANT), **row})
    return rows.table()


def _named(table: Table, config: TaskConfig) -> ChatColumns | None:
    """Return the columns that the user named, if they are to be read as conversations."""
    name = str(config.text)
    if name not in table.columns or not (config.chat or has_messages(table, name)):
        return None
    return _completed(table, ChatColumns(name, config.target))


def _usual(table: Table, config: TaskConfig) -> ChatColumns | None:
    """Return columns with usual names; None if only a text, or none of them, has one."""
    found = _with_usual_names(table, config)
    text = pick_column(table, None, TEXTS)
    if found is None or config.chat or text in (None, config.group, config.source, config.context):
        return found
    what, column = "prompts", f"{found.text!r}"
    if found.target is not None:
        what, column = "prompts with answers", f"{found.text!r}, {found.target!r}"
    elif has_messages(table, found.text):
        what = "messages"
    raise DataError(
        f"{table.source} has {what} ({column}) and a text ({text!r}). Set task.text={text} to "
        f"learn the text, or task.chat=true to read the {what}"
    )


def _with_usual_names(table: Table, config: TaskConfig) -> ChatColumns | None:
    """Return columns of conversations with usual names, whether or not there is a text, too."""
    messages = pick_column(table, None, MESSAGES)
    if messages is not None and has_messages(table, messages):
        return _completed(table, ChatColumns(messages))
    if config.target is not None:
        return None
    for names in ANSWERED:
        prompt, answer = (pick_column(table, None, (name,)) for name in names)
        if prompt is not None and answer is not None:
            usual = (name for name in ADDED.get(names[0], ()) if name != config.context)
            added = pick_column(table, None, tuple(usual))
            return _completed(table, ChatColumns(prompt, answer, added))
    prompt = pick_column(table, None, PROMPTS)
    return None if prompt is None else _completed(table, ChatColumns(prompt))


def _completed(table: Table, found: ChatColumns) -> ChatColumns:
    system, tools = pick_column(table, None, SYSTEM), pick_column(table, None, TOOLS)
    return ChatColumns(found.text, found.target, found.added, system, tools)


def has_messages(table: Table, name: str) -> bool:
    """Return whether a column has lists of messages."""
    first = next((value for value in table.columns[name] if not is_missing(value)), None)
    value = _parsed(first)
    return isinstance(value, Sequence) and not isinstance(value, str)


def _row(
    table: Table, columns: ChatColumns, number: int, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of `Split` for a row; what is wrong with it is noted."""
    text = _checked(table, number, columns.text, values[columns.text])
    if columns.added is not None and isinstance(text, str):
        more = values[columns.added]
        text = text if is_missing(more) else f"{text}\n\n{more}"
    if columns.system is not None and not is_missing(values[columns.system]):
        said = {"role": "system", "content": str(values[columns.system])}
        text = [said, *_turns(text, "user")]
    row = {"text": text}
    if columns.target is not None:
        row["target"] = _checked(table, number, columns.target, values[columns.target])
    if columns.tools is not None:
        row["tools"] = _tools(table, number, columns.tools, values[columns.tools])
    return row


def _checked(table: Table, number: int, column: str, value: Any) -> Any:
    """Return a text as it is, and messages as roles and contents."""
    value = _parsed(value)
    if is_missing(value):
        table.faults.add(number, f"the text is empty (column {column!r})")
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        table.faults.add(number, f"neither a text nor a list of messages (column {column!r})")
        return ""
    messages = list(value)
    if not messages:
        table.faults.add(number, f"the list of messages is empty (column {column!r})")
    found = [_message(one) for one in messages]
    for place, (one, message) in enumerate(zip(messages, found, strict=True), start=1):
        if message is None:
            table.faults.add(
                number, f"message {place} is {one!r}, without role and content (column {column!r})"
            )
    return [message for message in found if message is not None]


def _message(value: Any) -> dict[str, Any] | None:
    """Return a message with the usual names; None if it is none."""
    if not isinstance(value, Mapping):
        return None
    # Parquet has every field in every row.
    message = {name: part for name, part in value.items() if part is not None}
    if "from" in message and "value" in message:
        message = {"role": message["from"], "content": message["value"]}
    role = message.get("role")
    if not isinstance(role, str) or not ("content" in message or "tool_calls" in message):
        return None
    return {**message, "role": ROLES.get(role, role), "content": message.get("content", "")}


def _turns(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _parsed(value: Any) -> Any:
    """Return a value, or what a JSON text says if that is a list of messages."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    every = found if isinstance(found, list) else []
    spoken = [isinstance(one, dict) and not {"role", "from"}.isdisjoint(one) for one in every]
    return found if spoken and all(spoken) else value


def _tools(table: Table, number: int, column: str, value: Any) -> Any:
    """Return the tools of a row as a list, or None if it has none; a JSON text is read."""
    try:
        return (json.loads(value) if isinstance(value, str) and value else value) or None
    except ValueError as error:
        table.faults.add(number, f"the tools are not JSON: {error} (column {column!r})")
        return None
