"""With a real model, an answer that begins with pages is the same to the bit as one that is computed."""

import pytest

from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from tests.fakes import Boards, run, until
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

PROMPT = [(7 * i) % 89 + 1 for i in range(150)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
def test_tokens_and_logits_are_the_same_with_pages_and_without(tmp_path, sampling):
    make_split(random_model(CONFIGS["llama"]()), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True, cache_bytes=10**8) as boards:
            epoch = 0

            async def ask(**options):
                stats = {}
                told = dict(sampling=sampling, max_tokens=12, eos=(), logits=True, stats=stats, **options)
                async with ClusterClient.dial(plan, boards.addresses) as cluster:
                    answer = [(c.token, c.logits) async for c in cluster.generate(PROMPT, **told)]
                return answer, {stat.reused_tokens for stat in stats.values()}

            layers = boards.manifest.num_layers
            first = None
            # The third plan's pages come from both plans before: layer 1 was on the other board in the first one.
            for cut, reused in ((1, 0), (2, 0), (1, 128), (2, 128)):
                epoch += 1
                plan = await boards.form((0, cut, layers), epoch=epoch, context=256, chunk=32)
                answer, held = await ask()
                assert held == {reused} and all(logits for _, logits in answer)
                assert answer == (first := first or answer)
                await until(lambda: all(a.cache.is_quiet and a.stage.engine.idle for a in boards.agents))
                for i in range(2):
                    await boards.stop(i)
                    await boards.start(i)
            plan = await boards.form((0, 1, layers), epoch=epoch + 1, context=256, chunk=32)
            assert await ask(reuse=False) == (first, {0})

    run(go(), 60)
