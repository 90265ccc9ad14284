"""Owns telling the other replicas where to look: short words through Redis, which may be lost and often double."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast
from uuid import uuid4

import redis.asyncio
from redis.exceptions import RedisError

from runtime.telemetry import logger

CHANNEL: Final = "satchel:hints"
MAX_WAITING: Final = 10_000
MAX_TOGETHER: Final = 200
REDIS_PAUSE: Final = 0.5
REDIS_TIMEOUT: Final = 2.0
# A subscription that has been silent for so long is asked whether it still lives.
SILENCE: Final = 5.0


class Hints:
    """Words to and from the other replicas; whoever needs to be sure has to look by himself as well."""

    def __init__(self, hear: Callable[[str], None], turned: Callable[[], None], *, channel: str = CHANNEL) -> None:
        """`hear` takes each word of another replica; `turned` is called when Redis comes and goes.

        Only those hear each other who are on the same `channel`.
        """
        self._channel = channel
        self._hear = hear
        self._turned = turned
        self._own = uuid4().hex
        self._waiting: asyncio.Queue[str] = asyncio.Queue(MAX_WAITING)
        self.connected = False
        """Whether words of other replicas arrive."""

    def tell(self, word: str) -> None:
        """Says a word without spaces to every other replica, soon; it is dropped while Redis is away or overrun."""
        if self.connected:
            with suppress(asyncio.QueueFull):
                self._waiting.put_nowait(word)

    async def publish(self, client: redis.asyncio.Redis) -> None:
        """Sends what is told until it is cancelled."""
        while True:
            words = [await self._waiting.get()]
            while len(words) < MAX_TOGETHER and not self._waiting.empty():
                words.append(self._waiting.get_nowait())
            with suppress(RedisError, OSError, TimeoutError):
                await client.publish(self._channel, " ".join([self._own, *dict.fromkeys(words)]))

    async def listen(self, client: redis.asyncio.Redis) -> None:
        """Hears until it is cancelled, however often Redis comes and goes."""
        while True:
            try:
                async with client.pubsub() as subscription:
                    await cast(Any, subscription).subscribe(self._channel)
                    await self._hear_all(subscription)
            except (RedisError, OSError, TimeoutError) as error:
                if self.connected:
                    logger().warning("other replicas cannot be heard: Redis is away", error=str(error))
                    self.connected = False
                    self._turned()
                await asyncio.sleep(REDIS_PAUSE)

    async def _hear_all(self, subscription: redis.asyncio.client.PubSub) -> None:
        asked = False
        while True:
            message = await subscription.get_message(timeout=SILENCE)
            if message is None:
                if asked:
                    raise TimeoutError("the subscription gives no answer")
                await cast(Any, subscription).ping()
                asked = True
                continue
            asked = False
            if message["type"] == "subscribe":
                self.connected = True
                self._turned()
            elif message["type"] == "message":
                sender, *words = message["data"].decode().split(" ")
                for word in words if sender != self._own else ():
                    self._hear(word)


@asynccontextmanager
async def hints(
    redis_url: str, hear: Callable[[str], None], turned: Callable[[], None], *, channel: str = CHANNEL
) -> AsyncIterator[Hints]:
    """Hints for as long as the block runs; with an empty `redis_url` nothing is ever told or heard."""
    words = Hints(hear, turned, channel=channel)
    if not redis_url:
        yield words
        return
    client = redis.asyncio.Redis.from_url(
        redis_url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT, health_check_interval=0
    )
    tasks = [
        asyncio.create_task(words.listen(client), name="hear hints"),
        asyncio.create_task(words.publish(client), name="tell hints"),
    ]
    try:
        yield words
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()
