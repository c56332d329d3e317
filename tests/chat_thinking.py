"""A family whose chat template has a switch for thinking, as Qwen3's has: built-in weights under another template."""

from __future__ import annotations

from pathlib import Path

from hsd.bench import llama_cpp as gguf
from hsd.builtin import stored, tokenizer, weights_file

EMPTY = "<think>\n\n</think>\n\n"
"""What the template writes before a reply that is to come without thinking, and leaves out of earlier turns."""

TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' %}{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)


def write(folder: Path) -> str:
    """Puts the family "switch" into `folder`/models.yaml, its models beside it; what `--family` takes for it.

    Its first draft, "ghost", is not on the disk.
    """
    names = ("tiny", "small")
    for name in names:
        splitter = tokenizer.load(weights_file(name))
        splitter.chat_template = TEMPLATE
        folder.mkdir(parents=True, exist_ok=True)
        gguf.write(stored.load(weights_file(name)), folder / f"{name}.gguf", "Q8_0", splitter)
    models = ", ".join(f'{name}: {{path: "{folder / name}.gguf"}}' for name in ("ghost", *names))
    (folder / "models.yaml").write_text(f"families:\n  switch:\n    models: {{{models}}}\n    context: 512\n")
    return f"{folder / 'models.yaml'}#switch"
