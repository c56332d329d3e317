"""What has changed since somebody last looked, by topic."""

from __future__ import annotations

import threading

from chat import limits


class Changes:
    """A version that grows with every change, and the version of the last change of each topic."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._topics: dict[str, int] = {}
        self.version = 0

    def touch(self, topic: str) -> None:
        """Something about this topic is different now."""
        with self._news:
            self.version += 1
            # The topic that changed last comes last, and the first is forgotten.
            self._topics.pop(topic, None)
            self._topics[topic] = self.version
            if len(self._topics) > limits.TOPICS:
                del self._topics[next(iter(self._topics))]
            self._news.notify_all()

    def of(self, topic: str) -> int:
        """Version of the topic's last change."""
        return self._topics.get(topic, 0)

    def wait(self, version: int, timeout: float) -> int:
        """The version, as soon as it is above `version` or the time is up."""
        with self._news:
            self._news.wait_for(lambda: self.version > version, timeout)
            return self.version
