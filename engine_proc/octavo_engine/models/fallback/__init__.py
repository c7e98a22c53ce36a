"""Causal language models that have no file here, run by transformers' own modelling code over octavo's paged cache."""

from octavo_engine.models.fallback.model import TransformersModel, load_fallback

__all__ = ["TransformersModel", "load_fallback"]
