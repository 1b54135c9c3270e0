"""One playbook at a time works on a cluster."""

import json
import os
import subprocess
import sys

from tests.playbooks.plugins import plugin

lock = plugin("action", "edgellm_lock")


def test_who_is_at_work_keeps_others_out_and_itself_goes_on(tmp_path):
    path, me = tmp_path / "locks/a.json", lock.process(os.getpid(), "deploy.yml")
    assert lock.take(path, me) is None and lock.take(path, me) is None
    other = {**me, "pid": os.getppid(), "started_s": 1.0}
    assert lock.take(path, other) == me
    said = lock.sentence(me)
    assert f"deploy.yml, process {os.getpid()} of {me['user']}, since {me['since']}." in said


def test_a_process_that_is_gone_or_another_one_with_its_number_blocks_nobody(tmp_path):
    path, me = tmp_path / "a.json", lock.process(os.getpid(), "deploy.yml")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    for stale in ({**me, "pid": gone.pid}, {**me, "started_s": me["started_s"] - 100}):
        path.write_text(json.dumps(stale))
        assert lock.take(path, {**me, "user": "another"}) is None


def test_a_lock_that_is_half_written_or_hostile_blocks_nobody(tmp_path):
    path, me = tmp_path / "a.json", lock.process(os.getpid(), "deploy.yml")
    hostile = ({**me, "pid": -1}, {**me, "user": 7}, {**me, "pid": 2**80})
    for text in ("", "{", "[]", '{"pid": "1"}', "9" * 5000, *map(json.dumps, hostile)):
        path.write_text(text)
        assert lock.take(path, me) is None and json.loads(path.read_text()) == me


def test_each_cluster_has_its_own(tmp_path):
    assert lock.lock_path("/a/edgellm", "/c") != lock.lock_path("/b/edgellm", "/c")
    assert lock.lock_path("/a/edgellm", "/c").parent == lock.lock_path("/b/edgellm", "/c").parent
