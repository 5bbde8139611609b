"""Client of the evenkeel server: text, scores and adapters over gRPC."""

from .client import Client, Completion, EvenkeelError

__all__ = ["Client", "Completion", "EvenkeelError"]
