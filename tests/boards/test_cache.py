"""A question that begins like one from before a power loss computes only what is new."""

from tests.boards.conftest import PROMPT
from tests.boards.harness import figure, wait_for

LONG = " ".join([PROMPT] * 12)
PAGES = "find /var/lib/edgellm/cache -name '*.page'"


def test_prompts_are_still_there_after_a_power_loss_of_all_boards(cluster, controller):
    for _ in range(3):  # a board that measures another speed at its start may get layers of which it has no pages
        first = controller.ask(LONG, 10)
        plan = controller.plan()
        boards = [board for board in cluster.boards if board.name in plan]
        for board in boards:
            wait_for(lambda board=board: board.root(PAGES), 60, f"pages of {board}")
            assert board.root(f"{PAGES} ! -perm 600 -o ! -user edgellm -name '*.page'") == ""
            board.root("sync")
        for board in boards:
            board.kill()
        for board in boards:
            board.up()
            wait_for(lambda board=board: controller.row(board)["version"], 90, f"agent of {board}")
        again = controller.ask(LONG, 10)
        assert again["tokens"] == first["tokens"]
        if {name: controller.plan()[name] for name in plan} == plan:
            break
    figure("tokens of a prompt that all boards had after a power loss", again["reused_tokens"], "tokens")
    assert again["reused_tokens"] >= 64
