"""Outputs of a given form: grammars compiled beside the step loop, and matchers that say which tokens may come next."""

from octavo_engine.structured.compiler import InvalidGrammar
from octavo_engine.structured.grammars import Grammars
from octavo_engine.structured.matcher import GrammarFailed, Matcher

__all__ = ["GrammarFailed", "Grammars", "InvalidGrammar", "Matcher"]
