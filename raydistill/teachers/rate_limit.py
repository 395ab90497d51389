"""When the next request to an endpoint may start: requests and tokens a minute. Pure arithmetic over times that are given;
waiting is the caller's.

Requests are spread evenly, because an endpoint counts in windows of its own: with r requests a minute they start at least
60 / r seconds apart, so no window of a minute holds more than r. A request of n tokens puts the next one off by n / t
minutes likewise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RateLimit:
    """A limit and the time of the next free start.

    Attributes:
        requests_per_minute, tokens_per_minute: None for no limit.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _next_request: float = 0.0
    _next_token: float = 0.0

    def reserve(self, now: float, tokens: int) -> float:
        """Take the next free start and return its time, in seconds on the clock of `now`, not before `now`.

        Args:
            tokens: what the request will need, prompt and answer.
        """
        start = max(now, self._next_request, self._next_token)
        if self.requests_per_minute:
            self._next_request = start + 60 / self.requests_per_minute
        if self.tokens_per_minute:
            self._next_token = start + 60 * tokens / self.tokens_per_minute
        return start

    def correct(self, unused_tokens: int) -> None:
        """Give back tokens that a finished request had reserved and did not need."""
        if self.tokens_per_minute and unused_tokens > 0:
            self._next_token -= 60 * unused_tokens / self.tokens_per_minute

    def hold(self, until: float) -> None:
        """Let no request start before `until`: the endpoint said so."""
        self._next_request = max(self._next_request, until)
