from __future__ import annotations

import ast
import builtins
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from concept_snippets import SNIPPETS, unmarked
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.embedded.concepts import CATALOGUE, UnparsableSource, concept_spans, spans
from sae_pipeline.embedded.concepts.spans import vocabulary
from sae_pipeline.embedded.concepts.spans.replacement_fields import replacement_fields
from sae_pipeline.tokens import Document, stdlib_documents

NAMES = [concept.name for concept in CATALOGUE]
TEXTS = sorted({unmarked(snippet)[0] for snippets in SNIPPETS.values() for snippet in snippets})
Spans = dict[str, list[tuple[int, int]]]


def programs() -> st.SearchStrategy[str]:
    """Snippets behind each other, some of them in blocks of their own."""
    blocks = st.sampled_from(["", "if 𝒳:\n", "def f(self, a):\n", "class É(Base):\n", "for a in b:\n", "try:\n"])

    def placed(block: str, text: str) -> str:
        if not block:
            return text + "\n"
        body = "".join(f" {line}\n" for line in text.split("\n"))
        return f"{block} é = 'ü'\n{body}{'finally: pass' if block.startswith('try') else ''}\n"

    return st.lists(st.builds(placed, blocks, st.sampled_from(TEXTS)), min_size=1, max_size=5).map("".join)


def parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except SyntaxError:
            return False
    return True


def shifted(found: Spans, by: int) -> Spans:
    return {concept: [(start + by, end + by) for start, end in places] for concept, places in found.items()}


def check_spans(text: str, found: Spans) -> None:
    assert list(found) == NAMES
    for places in found.values():
        assert all(0 <= start < end <= len(text) for start, end in places)
        assert all(before[1] <= after[0] for before, after in pairwise(places))


@pytest.mark.parametrize("concept", NAMES)
def test_every_concept_is_where_a_person_marked_it(concept: str) -> None:
    for snippet in SNIPPETS[concept]:
        text, expected = unmarked(snippet)
        found = concept_spans(text)
        check_spans(text, found)
        assert found[concept] == expected, snippet


def test_the_oracle_has_three_snippets_for_each_concept_and_one_without_it() -> None:
    assert list(SNIPPETS) == NAMES and len(set(NAMES)) == 61
    for concept, snippets in SNIPPETS.items():
        marked = [bool(unmarked(snippet)[1]) for snippet in snippets]
        assert len(snippets) >= 3 and sum(marked) >= 2 and not all(marked), concept


@pytest.mark.parametrize(
    "rewritten",
    [
        lambda snippet: snippet.replace("\n", "\r\n"),
        lambda snippet: snippet.replace("\n", "\r"),
        lambda snippet: "\ufeff" + snippet,
        lambda snippet: "\ufeff" + snippet.replace("\n", "\r\n", 1),
        lambda snippet: "\f\n" + snippet,
        lambda snippet: snippet.replace("    ", "\t"),
        lambda snippet: snippet.rstrip("\n"),
    ],
    ids=["crlf", "cr", "bom", "bom and mixed", "form feed", "tabs", "no last newline"],
)
def test_line_ends_tabs_and_byte_order_marks_keep_their_places(rewritten: Callable[[str], str]) -> None:
    for concept, snippets in SNIPPETS.items():
        for snippet in snippets:
            text, expected = unmarked(rewritten(snippet))
            assert concept_spans(text)[concept] == expected, (concept, snippet)


def test_wide_characters_on_the_same_line_shift_by_characters() -> None:
    before, tried = "é𝒳ü; ", 0
    for concept in NAMES:
        if concept in ("docstring", "line_start"):  # both depend on what comes first
            continue
        for snippet in SNIPPETS[concept]:
            text, expected = unmarked(before + snippet)
            if parses(text) and not ast.get_docstring(ast.parse(text.removeprefix(before))):
                tried += 1
                assert concept_spans(text)[concept] == expected, (concept, snippet)
    assert tried > 120


@settings(max_examples=200, deadline=None)
@given(programs())
def test_what_follows_in_comments_and_blank_lines_changes_nothing(text: str) -> None:
    found = concept_spans(text)
    check_spans(text, found)
    comment = "# ünïcode"
    longer = concept_spans(f"{text}\n\n    {comment}\n\n")
    start = len(text) + 6
    found["comment"].append((start, start + len(comment)))
    assert longer == found


@settings(max_examples=200, deadline=None)
@given(programs())
def test_what_precedes_in_comments_shifts_everything(text: str) -> None:
    comment = "# é𝒳"
    expected = shifted(concept_spans(text), len(comment) + 1)
    expected["comment"].insert(0, (0, len(comment)))
    assert concept_spans(f"{comment}\n{text}") == expected


@settings(max_examples=200, deadline=None)
@given(programs())
def test_line_ends_do_not_matter(text: str) -> None:
    given_text = text.replace("\n", "\r\n")
    place = [at + text.count("\n", 0, at) for at in range(len(text) + 1)]
    expected = {name: [(place[a], place[b]) for a, b in found] for name, found in concept_spans(text).items()}
    assert concept_spans(given_text) == expected


@settings(max_examples=200, deadline=None)
@given(programs())
def test_spans_of_different_concepts_nest(text: str) -> None:
    # A decorator's span leaves out brackets around its expression; lines begin and end with tokens of their own.
    crossing = {"decorator", "continuation_line", "indent_depth_3"}
    found = {place for concept, places in concept_spans(text).items() if concept not in crossing for place in places}
    open_ends: list[int] = []
    for start, end in sorted(found, key=lambda place: (place[0], -place[1])):
        open_ends = [outer for outer in open_ends if outer > start]
        assert all(end <= outer for outer in open_ends), text[start:end]
        open_ends.append(end)


def fields_of(literal: str) -> list[str]:
    return [literal[field.expression_start : field.expression_end] for field in replacement_fields(literal)]


def test_fields_are_found_by_the_rules_of_python_3_12_as_well() -> None:
    assert fields_of('f"{d["a"]} {f"{x}" + "}"!r:{w}}"') == ['d["a"]', 'f"{x}" + "}"', "w"]
    assert fields_of("f'{a # } : !\n}{b!=c}{d:=^4}'") == ["a # } : !\n", "b!=c", "d"]
    assert fields_of("rf'{x!s}{y = }'") == ["x", "y "]
    assert fields_of("'{x}'") == []


def test_vocabulary_is_that_of_python() -> None:
    for name in vocabulary.EXCEPTIONS:
        assert issubclass(getattr(builtins, name), BaseException)
    for name in vocabulary.BUILTINS:
        assert callable(getattr(builtins, name))
    assert not vocabulary.BUILTINS & vocabulary.EXCEPTIONS


@pytest.mark.parametrize(
    "text", ["def f(:\n", "x = 1\n  y = 2\n", "\0", "x = '\ud800'", "(" * 500, "if x:\n\ty\n        z\n"]
)
def test_a_text_that_does_not_parse_is_a_named_error(text: str) -> None:
    with pytest.raises(UnparsableSource, match="of this Python"):
        concept_spans(text)


def test_an_empty_text_has_no_spans() -> None:
    for text in ("", "\n", "\ufeff", "   "):
        assert not any(concept_spans(text).values())


def test_doubtful_escapes_neither_warn_nor_fail() -> None:
    text = "x = '\\d'\n"
    assert concept_spans(text)["string"] == [(4, 8)]


def test_the_spans_need_the_standard_library_only(tmp_path: Path) -> None:
    home = Path(spans.__file__).parent
    folder = tmp_path.joinpath(*spans.__name__.split("."))
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for parent in list(folder.relative_to(tmp_path).parents)[:-1]:
        (tmp_path / parent / "__init__.py").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from {spans.__name__} import concept_spans\n"
        "print(concept_spans('x = 1')['number'])\n"
        f"assert {str(tmp_path)!r} in sys.modules['sae_pipeline'].__file__\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[(4, 5)]", "")


def sample() -> Iterator[Document]:
    """Files of the standard library: every thirtieth, and those whose tests are hard on parsers."""
    hard = ("fstring", "grammar", "unicode_identifiers", "string_literals", "decorators", "positional_only", "patma")
    for i, document in enumerate(stdlib_documents()):
        if len(document.text) < 60_000 and (i % 30 == 0 or any(f"test/test_{name}.py" == document.id for name in hard)):
            yield document


def named_in(tree: ast.AST) -> dict[str, Counter[str]]:
    """Names that the syntax tree holds as text, without a look at positions."""
    found: dict[str, Counter[str]] = {}

    def note(concept: str, name: str) -> None:
        found.setdefault(concept, Counter())[name] += 1

    for node in ast.walk(tree):
        match node:
            case ast.Attribute():
                note("attribute", node.attr)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                note("function_name", node.name)
            case ast.ClassDef():
                note("class_name", node.name)
            case ast.arg():
                note("parameter", node.arg)
            case ast.ImportFrom():
                for alias in node.names:
                    if alias.name != "*":
                        note("imported_name", alias.name)
            case ast.Call():
                if isinstance(node.func, ast.Attribute):
                    note("called_attribute", node.func.attr)
                for item in node.keywords:
                    if item.arg:
                        note("keyword_argument", item.arg)
            case ast.Constant(value=None | True | False):
                note("singleton", repr(node.value))
            case ast.MatchSingleton():
                note("singleton", repr(node.value))
    return found


def test_files_that_compile_have_spans_and_the_names_that_their_trees_hold() -> None:
    seen, found_somewhere = 0, set[str]()
    for document in sample():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = compile(document.text, document.id, "exec", ast.PyCF_ONLY_AST)
            except SyntaxError:
                continue
        seen += 1
        found = concept_spans(document.text)
        check_spans(document.text, found)
        found_somewhere |= {concept for concept, places in found.items() if places}
        for concept, names in named_in(tree).items():
            # Names of more than ASCII may be written otherwise than the tree has them.
            texts = Counter(text for start, end in found[concept] if (text := document.text[start:end]).isascii())
            assert texts == Counter({name: n for name, n in names.items() if name.isascii()}), (document.id, concept)
    assert seen >= 20 and len(found_somewhere) >= 50
