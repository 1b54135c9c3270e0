"""How many tokens a chat has, which clients ask before they send it."""

import asyncio

from edgellm.client import Options
from edgellm.server.asking import Ask
from edgellm.server.models import Models
from edgellm.text.prepared import prepare


async def count(models: Models, ask: Ask) -> int:
    """Return how many tokens a chat has with its tools, as the model gets it. No board is asked.

    Raises UnknownModel, Loading, and UsageError for what makes no sense.
    """
    async with models.use(ask.model, ask.keep_alive_s) as (_, client):
        ready = await asyncio.to_thread(
            prepare, client.asker.tokenizer, ask.messages, tools=ask.tools, tool_choice=ask.tool_choice,
            parallel=ask.parallel, wanted=ask.format, think=ask.think, template=ask.template,
        )  # fmt: skip
        options: Options = {"template": ready.template, "tools": ready.tools, "controls": ready.controls}
        counted: int = await client.count(ready.messages, **options)
    return counted
