"""What a visitor asks of the page, as its address says it: whatever is on view can be kept and sent on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protos.impression_pb2 import Variation
from protos.recommender_pb2 import Context, RecommendRequest, SearchRequest, WhatIf

KINDS: Mapping[str, str] = {"weights": "action_weights", "policy": "policy", "quotas": "quotas"}
"""Fields of a variation, by how the address begins that names one of theirs: weights.click."""
_SIZE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A look-up, and what is to be tried beside it: texts as they were typed, so that they can be typed on."""

    user: str = ""
    text: str = ""
    """A typed query; a recommendation where it is empty."""
    request: str = ""
    """Id of a logged request, in place of the two."""
    size: str = ""
    draw: str = ""
    """From which the draw follows: the same again gives the same slate."""
    generation: str = ""
    """What is tried; empty: the one that answers."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """What is tried otherwise, by names such as weights.click."""
    asked: bool = False
    """Whether there is anything to look up."""

    @classmethod
    def of(cls, words: Mapping[str, str]) -> "Question":
        """From the words of an address; those that are none of ours are passed over."""
        given = {name: value.strip() for name, value in words.items() if value.strip()}
        changes = {name: value for name, value in given.items() if name.partition(".")[0] in KINDS and "." in name}
        own = {name: given.get(name, "") for name in ("user", "text", "request", "size", "draw", "generation")}
        return cls(**own, changes=changes, asked=any(name in words for name in ("user", "text", "request")))

    @property
    def tries(self) -> bool:
        """Whether something is to be tried beside what is looked up."""
        return bool(self.generation or self.changes)

    @property
    def changes_sources(self) -> bool:
        return any(name.startswith("quotas.") for name in self.changes)

    def request_to(self, *, now_ms: int) -> str | RecommendRequest | SearchRequest:
        """What is to be explained.

        Args:
            now_ms: for a server that trusts its callers' clock.

        Raises:
            ValueError: for a size that is no whole number.
        """
        if self.request:
            return self.request
        if self.size and not self.size.isdecimal():
            raise ValueError(f"size: {self.size!r} given, allowed: a whole number from 1 to 500")
        asked: dict[str, Any] = {
            "context": Context(user_id=self.user, client_time_ms=now_ms),
            "request_id": self.draw,
            "page_size": int(self.size) if self.size else _SIZE,
        }
        return SearchRequest(query=self.text, **asked) if self.text else RecommendRequest(**asked)

    def what_if(self) -> WhatIf:
        """What is to be tried.

        Raises:
            ValueError: for a change that is no number.
        """
        variation = Variation()
        for name, text in self.changes.items():
            kind, _, of = name.partition(".")
            try:
                getattr(variation, KINDS[kind])[of] = int(text) if kind == "quotas" else float(text)
            except ValueError:
                wanted = "a whole number" if kind == "quotas" else "a number"
                raise ValueError(f"{name}: {text!r} given, allowed: {wanted}") from None
        return WhatIf(generation=self.generation, variation=variation)
