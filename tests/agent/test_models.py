"""An agent with several models: it reports and times each, and loads the section of whichever plan it is given."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.agent.models import MAX_MODELS, Models
from edgellm.errors import ManifestError
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, connect_all, make_manifest, make_plan, run, write_shards


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """A model of six layers, and one of four."""
    found = []
    for manifest in (make_manifest(), replace(make_manifest(4), model="other")):
        folder = tmp_path / manifest.model
        folder.mkdir()
        manifest.write(folder)
        write_shards(folder, manifest, (0, manifest.num_layers))
        found.append(folder)
    return found


def test_a_plan_s_model_is_found_by_its_manifest(folders):
    models = Models.read("b0", folders)
    first, other = (Manifest.read(folder) for folder in folders)
    assert [model.manifest.model for model in models] == ["fake", "other"] and models.default.manifest == first
    assert models.of(make_plan(other, (0, 4))).folder == folders[1]
    with pytest.raises(ManifestError) as e:
        models.of(make_plan(replace(first, sha256="7" * 64), (0, 6)))
    assert str(e.value) == (
        f"board b0 has the shards of fake ({first.sha256[:12]}…), other ({other.sha256[:12]}…), the plan is for fake "
        "(777777777777…). Push the same shards to every board."
    )
    with pytest.raises(ManifestError):
        models.of(make_plan(replace(first, sha256=other.sha256), (0, 6)))  # six layers, where it has four


def test_a_further_model_that_can_not_be_used_is_left_out(folders, tmp_path):
    models = Models.read("b0", [*folders, tmp_path / "nowhere"])
    assert len(list(models)) == 2

    def measure(manifest, folder):
        raise ManifestError(f"{folder}: no layer shard is here")

    models.time_others(measure)
    assert [model.manifest.model for model in models] == ["fake"]
    with pytest.raises(ManifestError):
        Models.read("b0", [tmp_path / "nowhere", *folders])
    with pytest.raises(ManifestError, match=f"17 models; it takes at most {MAX_MODELS}"):
        Models.read("b0", [folders[0]] * 17)


def test_times_are_kept_apart(folders):
    models = Models.read("b0", folders)
    models.time_others(lambda manifest, folder: (0.5, 0.25))
    first, other = models
    assert first.pace.start.layer_s == 0.0 and (other.pace.start.layer_s, other.pace.start.head_s) == (0.5, 0.25)
    assert not models.served
    other.pace.section(4.0, True)
    assert models.served and not first.pace.served


def test_status_has_what_each_model_offers_and_the_plan_s_model_in_front(tmp_path):
    other = replace(make_manifest(4), model="other")

    async def go():
        async with Boards(tmp_path, 1, more={tmp_path / "other": other}) as boards:
            (client,) = await connect_all(boards.addresses)
            try:
                before = await client.status()
                plan = make_plan(Manifest.read(tmp_path / "other"), (0, 4))
                boards.manifest, first = Manifest.read(tmp_path / "other"), boards.manifest
                await boards.form((0, 4))
                return before, await client.status(), plan, first
            finally:
                client.close()

    before, after, plan, first = run(go())
    assert before.model == "fake" and [here.model for here in before.more] == ["other"]
    assert before.more[0].shards.layers == ((0, 4),) and before.more[0].capacity.layer_s == 0.001
    view = before.of_model(plan.manifest_sha256)
    assert (view.model, view.shards, view.capacity) == ("other", before.more[0].shards, before.more[0].capacity)
    assert before.of_model("0" * 64) == before
    assert after.model == "other" and after.plan == plan
    assert [here.manifest_sha256 for here in after.more] == [first.sha256]
