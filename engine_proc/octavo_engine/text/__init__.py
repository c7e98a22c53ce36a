"""Strings to token ids and back: tokenizers, chat templates, incremental decoding, stop strings."""

from octavo_engine.text.detokenizer import Detokenizer, Piece
from octavo_engine.text.errors import TextError, WrongOption
from octavo_engine.text.loading import load_text
from octavo_engine.text.pieces import Stream
from octavo_engine.text.stop import StopMatcher
from octavo_engine.text.text import Text

__all__ = ["Detokenizer", "Piece", "StopMatcher", "Stream", "Text", "TextError", "WrongOption", "load_text"]
