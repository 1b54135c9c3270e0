"""The tokenizer of a Hugging Face folder as one tokenizer.json, from all files that name its tokens."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from edgellm.checkpoint import sentencepiece_model
from edgellm.checkpoint.folder_templates import chat_templates
from edgellm.checkpoint.gguf_tokenizer import make_library, tokenizer_json
from edgellm.checkpoint.json_file import parse_json, read_json_if_there, read_limited, to_bytes
from edgellm.checkpoint.names import one_line
from edgellm.checkpoint.vocabulary.metadata import Vocabulary
from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import check_fetched

# Vocabularies that transformers can make a tokenizer.json of, in the order in which they are looked for.
_VOCABULARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "tekken.json")
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class FolderTokenizer:
    """What a split gets of a folder's tokenizer. `files` are its files by name; `control_tokens` and `added_words` are
    the tokens added to the vocabulary, special or not, by text; `eos_token_id` is the one that the tokenizer names."""

    files: dict[str, bytes]
    control_tokens: dict[str, int]
    added_words: dict[str, int]
    eos_token_id: int | None
    notes: tuple[str, ...] = ()


def read_tokenizer(folder: Path, vocab_size: int) -> FolderTokenizer | None:
    """Return the tokenizer of `folder`, whose model embeds `vocab_size` tokens; None if there is none.

    Raises CheckpointError in one line for files that can't be read, or made into a tokenizer.json.
    """
    config = read_json_if_there(folder / "tokenizer_config.json")
    library, vocabulary = _library(folder, config)
    if library is None:
        return None
    # Training scripts leave truncation and padding behind; transformers resets them before it reads a prompt.
    library.no_truncation()
    library.no_padding()
    special_map = read_json_if_there(folder / "special_tokens_map.json")
    names = _special_names(config, special_map)
    tokens = _added_tokens(folder, config, special_map, names)
    if vocabulary is not None:
        tokens = [(i, _in_plain_text(token, library)) for i, token in tokens]
    notes = _add_tokens(library, tokens, vocab_size, folder)
    if vocabulary is not None:
        _surround(library, vocabulary, config, names)
    added = library.get_added_tokens_decoder()
    files = {"tokenizer.json": library.to_str().encode()}

    templates = chat_templates(folder, config)
    told = {k: v for k, v in config.items() if k not in ("added_tokens_decoder", "chat_template", *_LISTS)}
    told |= {name: token.content for name, token in names.items()}
    if "default" in templates:
        files["chat_template.jinja"] = templates["default"].encode()
    elif templates:
        notes.append(
            f"{folder} has the chat templates {', '.join(sorted(templates))[:200]}, but none named default, so "
            "the model can only be asked with --raw."
        )
    if len(templates) > 1:
        told["chat_template"] = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    if told:
        files["tokenizer_config.json"] = to_bytes(told)
    eos = library.token_to_id(names["eos_token"].content) if "eos_token" in names else None
    return FolderTokenizer(
        files,
        {t.content: i for i, t in sorted(added.items()) if t.special},
        {t.content: i for i, t in sorted(added.items()) if not t.special},
        eos if eos is not None and eos < vocab_size else None,
        tuple(notes),
    )


def _library(folder: Path, config: dict) -> tuple[Tokenizer | None, Vocabulary | None]:
    """Return the tokenizers library's object for tokenizer.json, or made of other files; with the vocabulary if it is
    made of that alone, and so lacks the tokens that other files name."""
    path = folder / "tokenizer.json"
    if path.is_file():
        content = parse_json(read_limited(path), path)
        try:
            return Tokenizer.from_str(json.dumps(content)), None
        except Exception as e:  # the library raises plain Exception for whatever it can't parse
            raise CheckpointError(f"{path} is not a tokenizer: {one_line(e)}") from None
    if found := next((folder / name for name in _VOCABULARIES if (folder / name).is_file()), None):
        if found.suffix != ".model":
            return _converted(folder, found), None
        if not _is_sentencepiece(found):
            raise _only_ranks(found)
        if (vocabulary := _trained(folder, found, config)) is None:
            return _converted(folder, found), None
        return make_library(json.dumps(tokenizer_json(vocabulary)), str(found)), vocabulary
    if ranks := sorted(folder.glob("*.tiktoken")):
        raise _only_ranks(ranks[0])
    return None, None


def _is_sentencepiece(path: Path) -> bool:
    """Whether a .model file begins as SentencePiece's do: field 1, a piece, in protobuf. Llama 3's and others' begin
    with a token in base64."""
    with open(path, "rb") as f:
        beginning = f.read(64)
    check_fetched(beginning, path)
    return beginning.startswith(b"\x0a")


def _only_ranks(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} has only the ranks of tokens (tiktoken's format), not how a text is cut into words, so the ids of a "
        "prompt can't be known. Put the model's tokenizer.json beside it; models that others converted have one."
    )


def _trained(folder: Path, path: Path, config: dict) -> Vocabulary | None:
    """Return a vocabulary of SentencePiece's that gets its ids as a GGUF's does; None for one of another kind."""
    lacking = [name for name, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
               if not _is_installed(module)]  # fmt: skip
    if lacking:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, only {path.name}, and {' and '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not installed. Run pip install 'edgellm[convert]'."
        )
    if (metadata := sentencepiece_model.read_metadata(path)) is None:
        return None
    if isinstance(prefix := config.get("add_prefix_space"), bool):
        metadata["tokenizer.ggml.add_space_prefix"] = prefix
    return Vocabulary.parse(metadata | {"tokenizer.ggml.add_bos_token": False}, str(path))


def _in_plain_text(token: AddedToken, library: Tokenizer) -> AddedToken:
    """Return an added token that is looked for before spaces become marks. The library would find a normalized one only
    behind a space."""
    spaced = token.content.replace(sentencepiece_model.SPACE, " ")
    text = spaced if library.token_to_id(spaced) is not None else token.content
    return AddedToken(text, **{flag: getattr(token, flag) for flag in _FLAGS} | {"normalized": False})


def _surround(library: Tokenizer, vocabulary: Vocabulary, config: dict, names: dict[str, AddedToken]) -> None:
    """Put the tokens around every text that the folder's tokenizer puts there in transformers."""
    # The one class that begins a text with bos unless told otherwise; the others need add_bos_token.
    default = {"bos": str(config.get("tokenizer_class")).startswith("CodeLlama")}
    around = {}
    for role in ("bos", "eos"):
        if config.get(f"add_{role}_token", default.get(role)) is not True:
            continue
        key, i = f"{role}_token", vocabulary.named_id(role)
        if key in names:
            i = library.token_to_id(names[key].content)
        elif key in config:  # as null
            i = None
        if i is not None:
            around[role] = i
    single = " ".join(part for part in ("bos", "$A", "eos") if part == "$A" or part in around)
    library.post_processor = TemplateProcessing(
        single=single,
        pair=f"{single} {single.replace('$A', '$B')}",
        special_tokens=[{"id": role, "ids": [i], "tokens": [library.id_to_token(i)]} for role, i in around.items()],
    )


def _converted(folder: Path, vocabulary: Path) -> Tokenizer:
    if vocabulary.name == "vocab.json" and not (folder / "merges.txt").is_file():
        raise CheckpointError(f"{folder} has neither tokenizer.json nor the merges.txt that belongs to its vocab.json.")
    from transformers import AutoTokenizer

    from edgellm.checkpoint.names import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as e:  # converters raise whatever their vocabulary's format makes them
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and transformers can't make one of {vocabulary.name}: {one_line(e)}"
        ) from None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _special_names(config: dict, special_map: dict) -> dict[str, AddedToken]:
    """Return the tokens that have a role, by its name. As in transformers, special_tokens_map.json counts more than an
    old tokenizer_config.json, and less than one that lists the tokens itself."""
    order = (special_map, config) if "added_tokens_decoder" in config else (config, special_map)
    names = {}
    for content in order:
        for name, value in content.items():
            # Models have roles of their own, such as image_token.
            if (name in _NAMES or name.endswith("_token")) and (token := _token(value)) is not None:
                names[name] = token
        if isinstance(own := content.get("extra_special_tokens"), dict):
            names |= {str(name): token for name, value in own.items() if (token := _token(value)) is not None}
    return names


def _added_tokens(folder: Path, config: dict, special_map: dict, names: dict[str, AddedToken]) -> list:
    """Return (id or None, token) for each token that some file adds to the vocabulary, those with ids first."""
    listed: dict[int, AddedToken] = {}
    special = [*names.values()]
    for content in (config, special_map):
        for key in _LISTS:
            values = content.get(key)
            special += [t for value in (values if isinstance(values, list) else []) if (t := _token(value)) is not None]
    texts = {t.content for t in special}
    for text, i in read_json_if_there(folder / "added_tokens.json").items():
        listed[_id(i, folder / "added_tokens.json")] = AddedToken(
            text, special=text in texts, normalized=text not in texts
        )
    decoder = config.get("added_tokens_decoder")
    for i, value in (decoder if isinstance(decoder, dict) else {}).items():
        where = folder / "tokenizer_config.json"
        token = _token(value, special=False)
        if token is None:
            raise CheckpointError(f"{where}: added_tokens_decoder has for token {str(i)[:20]}: {str(value)[:80]}")
        listed[_id(i, where)] = token
    return [*sorted(listed.items()), *((None, token) for token in special)]


def _add_tokens(library: Tokenizer, tokens: list, vocab_size: int, folder: Path) -> list[str]:
    """Add tokens to `library` as transformers would; return notes about those that get a different id."""
    there = {t.content: t for t in library.get_added_tokens_decoder().values()}
    room = vocab_size - library.get_vocab_size()
    chosen: dict[str, AddedToken] = {}
    for wanted, token in tokens:
        known = there.get(token.content)
        if known is not None and (wanted is None or _flags(known) == _flags(token)):
            continue
        if library.token_to_id(token.content) is None and token.content not in chosen:
            if room <= 0:
                continue  # the model has no embedding for it
            room -= 1
        there[token.content] = chosen[token.content] = token
    library.add_tokens([*chosen.values()])
    said = {token.content: wanted for wanted, token in tokens if wanted is not None and token.content in chosen}
    return [
        f"{folder}: token {text[:60]!r} should have the id {wanted}, but the vocabulary has {found}. The id "
        f"{found} is used, as in transformers."
        for text, wanted in said.items()
        if (found := library.token_to_id(text)) != wanted
    ]


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in _FLAGS)


def _token(value, special: bool = True) -> AddedToken | None:
    """Return the token that a JSON value describes, a text or an object with a text and flags, else None."""
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not value["content"]:
        return None
    flags = {flag: value[flag] for flag in _FLAGS if isinstance(value.get(flag), bool)}
    flags["special"] = flags.get("special", special)
    return AddedToken(value["content"], **flags)


def _id(value, where: Path) -> int:
    try:
        i = int(value)
    except (TypeError, ValueError):
        i = -1
    if not 0 <= i < 1 << 31:
        raise CheckpointError(f"{where}: a token has the id {str(value)[:40]!r}, expected a number from 0 on")
    return i
