"""What sections cost, written down anew from docs/architecture.md, for the tests that try everything."""

from itertools import accumulate


def token_ns(manifest, board, start, end, alone):
    """One token through a section, and the hop out of it."""
    return _ns(manifest, board, board.layer_s, board.head_s, start, end, alone)


def turn_ns(manifest, board, request, boards, start, end, alone):
    """One token of each answer of a group, and as many of prompts; `boards` is how many there are."""
    group = min(16, -(-request.slots // min(boards, manifest.num_layers)))
    more_s, prompt_s = (min(s, board.layer_s) for s in (board.batch_layer_s, board.prefill_layer_s))
    head_s = board.head_s * (1 + (group - 1) * more_s / board.layer_s)
    return _ns(
        manifest, board, board.layer_s + (group - 1) * more_s + 1 * group * prompt_s, head_s, start, end, alone
    )


def _ns(manifest, board, layer_s, head_s, start, end, alone):
    sizes = [s.ram_bytes for s in manifest.shards[1:-1]]
    n, sums = len(sizes), [0, *accumulate(sizes)]
    until = [round(1e9 * layer_s) * n * done // sums[-1] for done in sums]
    ends = round(1e9 * head_s) * (end == n) + round(1e9 * board.hop_s) * (not alone)
    return until[end] - until[start] + ends
