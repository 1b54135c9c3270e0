"""What clients ask for, and what must come of it."""

MODEL = "smollm2-135m"
QUESTION = "Why is the sky blue?"
LENGTH = 24  # tokens of the answer to it
ANY = "Tell me about Paris."

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def user(text: str) -> list[dict]:
    """Return a chat of one message."""
    return [{"role": "user", "content": text}]


def check_person(person: object) -> None:
    """Check that a value matches PERSON."""
    assert isinstance(person, dict) and person.keys() == {"name", "age"}
    assert isinstance(person["name"], str) and len(person["name"]) <= 20
    assert isinstance(person["age"], int) and 0 <= person["age"] <= 150


def check_weather(arguments: object) -> None:
    """Check that a value matches the parameters of WEATHER."""
    assert isinstance(arguments, dict) and arguments.keys() == {"city"} and arguments["city"] in ("Paris", "Rome")
