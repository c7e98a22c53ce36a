"""Tool calls in a model's text: the families' formats, parsed as the text comes."""

from octavo.openai.tools.events import Arguments, Call, Event, Text, merged
from octavo.openai.tools.formats import FORMATS, Format, format_of
from octavo.openai.tools.reader import Reader

__all__ = ["FORMATS", "Arguments", "Call", "Event", "Format", "Reader", "Text", "format_of", "merged"]
