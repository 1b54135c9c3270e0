"""Two real models on one board, asked at once: each gives the tokens and the logits that it gives alone."""

import asyncio

from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.manager.survey import Fleet
from edgellm.manager.take import take, unload
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, make_plan, run
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

PROMPTS = [[(7 * i) % 89 + 1 for i in range(length)] for length in (70, 9, 33)]


def test_answers_of_both_are_the_same_to_the_bit_as_those_of_each_alone(tmp_path):
    folders = [tmp_path / name for name in ("llama", "qwen3")]
    for folder in folders:
        make_split(random_model(CONFIGS[folder.name]()), folder)

    async def go():
        async with Boards(folders[0], 1, real=True, more={folders[1]: None}) as boards:
            manifests = [Manifest.read(folder) for folder in folders]
            epoch = 0

            async def load(manifest, keep=frozenset()):
                nonlocal epoch
                epoch += 1
                plan = make_plan(manifest, (0, manifest.num_layers), epoch=epoch, context=128, slots=2, chunk=16)
                async with Fleet(manifest, boards.addresses) as fleet:
                    await fleet.survey()
                    await take(fleet, plan, keep=keep)
                return plan

            async def ask(cluster, prompt):
                told = dict(sampling=Sampling(), max_tokens=24, eos=(), logits=True)
                return [(c.token, c.logits) async for c in cluster.generate(prompt, **told)]

            alone = []
            for manifest in manifests:
                async with ClusterClient.dial(await load(manifest), boards.addresses) as cluster:
                    alone.append([await ask(cluster, prompt) for prompt in PROMPTS])
            first = await load(manifests[0])
            second = await load(manifests[1], {first.digest})
            assert [one.plan for one in boards.agents[0].holding.held.served] == [first, second]
            async with Connections() as connections:
                peers = await connections.to_all(boards.addresses)
                both = [ClusterClient(plan, peers) for plan in (first, second)]
                together = await asyncio.gather(*(ask(c, prompt) for prompt in PROMPTS for c in both))
                assert [together[::2], together[1::2]] == alone
                async with Fleet(manifests[1], boards.addresses) as fleet:
                    await fleet.survey()
                    assert await unload(fleet, second)
                assert await ask(both[0], PROMPTS[0]) == alone[0][0]

    run(go(), 60)
