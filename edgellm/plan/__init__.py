"""Planning: manifest + measured capacities → which board holds which layers. Pure functions, standard library only.

types.py      Capacity, Settings, Section, Plan: values, validated where they enter
needs.py      what a section needs in RAM, and what a board leaves to use
costs.py      what layers, tokens and groups of answers cost on a board
fleet.py      boards as the searches count them, in integers
search.py     the exact search over boards, orders and cuts
make.py       make_plan, check_plan
swap.py       what sections cost whose experts don't fit into RAM
short.py      what is missing if a model doesn't fit, and what would fit
words.py      times and sizes for people
fewest.py     the search for the fewest bytes to load
rebalance.py  next_plan: kept, or moved with as few bytes as are worth it
around.py     the same, around pairs of boards that can't reach each other
explain.py    a plan, and a move, in numbers and words
boards.py     boards typed on a command line ("pi1=3.1GB@25ms")
"""

from edgellm.plan.boards import parse_board, parse_boards, parse_size
from edgellm.plan.explain import degraded_lines, explain_dict, explain_move, explain_move_dict, explain_text
from edgellm.plan.make import check_lengths, check_plan, draft_of, make_plan
from edgellm.plan.needs import Needs, SectionNeed, headroom_bytes, section_need, usable_bytes
from edgellm.plan.rebalance import GAIN, Move, next_plan
from edgellm.plan.swap import Swapping, swapping
from edgellm.plan.types import BOARD_NAME, KV_DTYPES, OBJECTIVES, Capacity, Draft, Plan, Section, Settings

__all__ = [
    "BOARD_NAME",
    "GAIN",
    "KV_DTYPES",
    "OBJECTIVES",
    "Capacity",
    "Draft",
    "Move",
    "Needs",
    "Plan",
    "Section",
    "SectionNeed",
    "Settings",
    "Swapping",
    "check_lengths",
    "check_plan",
    "degraded_lines",
    "draft_of",
    "explain_dict",
    "explain_move",
    "explain_move_dict",
    "explain_text",
    "headroom_bytes",
    "make_plan",
    "next_plan",
    "parse_board",
    "parse_boards",
    "parse_size",
    "section_need",
    "swapping",
    "usable_bytes",
]
