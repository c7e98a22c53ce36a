"""`octavo bench serve`: a load on any server that speaks OpenAI's API, and how its latencies hold up under it.

The load is open: when a request is sent is drawn beforehand and does not wait for answers, so that a server that falls
behind shows it (latencies count from the time a request was due). Only --concurrency bounds what is in flight.
"""

from octavo.load.options import add_arguments, options_of

__all__ = ["add_arguments", "options_of"]
