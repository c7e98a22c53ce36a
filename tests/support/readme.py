"""README's table of architectures, made of the registry: `python -m tests.support.readme` writes it."""

from __future__ import annotations

from octavo_engine.models.registry import FAMILIES
from tests.support.checkpoints import ROOT

__all__ = ["architectures", "readme_table"]

README = ROOT / "README.md"
_BEGIN, _END = "<!-- architectures -->\n", "<!-- /architectures -->\n"


def architectures() -> str:
    """One row a family, in Markdown."""

    def code(names: tuple[str, ...]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    rows = [f"| {family.models} | {code(family.architectures)} | {code(family.gguf)} |\n" for family in FAMILIES]
    return "| models | `architectures` in config.json | GGUF |\n|-|-|-|\n" + "".join(rows)


def readme_table() -> str:
    """The table as README has it."""
    text = README.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


if __name__ == "__main__":
    README.write_text(README.read_text().replace(_BEGIN + readme_table(), _BEGIN + architectures()))
