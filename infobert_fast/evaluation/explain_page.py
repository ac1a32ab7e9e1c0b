"""Explanations as one HTML page: nothing to fetch, no script, light and dark, and readable without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from infobert_fast.evaluation.explain import KINDS, Explanation, Kind, Token

__all__ = ["PARTS", "explanation_page", "verdict", "words"]

PARTS = ("first text", "second text")
MEANING: dict[Kind, str] = {
    "useless": "least gradient: the answer hardly depends on it",
    "anchored": "useful and robust: what the regulariser ties to the sentence",
    "non-robust": "largest gradient: small changes of it move the answer most",
}

# The three kinds differ in colour, in weight and slant of the text, and in the pattern of the bar: hollow, full,
# hatched. Colours are of Okabe and Ito's palette, lightened on dark ground.
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1d1f21; --quiet: #62676c; --line: #dfe1e3;
  --useless: #7d8388; --anchored: #0067a5; --non-robust: #c04a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181a; --card: #1e2123; --ink: #e8e9ea; --quiet: #a2a8ad;
  --line: #34383b; --useless: #8d9499; --anchored: #62b6ec; --non-robust: #ff9a57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 1rem; color: var(--quiet); max-width: 46rem; }
article, .legend { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.25rem;
  margin: 1rem 0; }
.legend { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; align-items: center; margin: 1rem 0; }
.legend dt, .legend dd { margin: 0; }
.legend dd, h2 { color: var(--quiet); font-size: .95rem; }
h2 { font-weight: 400; margin: 0 0 .75rem; }
h2 strong { color: var(--ink); font-weight: 600; }
.text { display: grid; grid-template-columns: 6.5rem 1fr; margin: .35rem 0; }
.text > span { font-size: .8rem; color: var(--quiet); padding-top: .3rem; }
.tokens { font-size: 1.15rem; line-height: 1.35; }
.word { display: inline-flex; align-items: flex-start; white-space: pre; margin: 0 .12em .3em; vertical-align: top; }
.token { display: inline-block; padding: 0 .06em; }
.token i { display: block; height: 1.5em; margin-top: .1em; font-style: normal; }
.token i::before { content: ""; display: block; height: max(calc(var(--norm) * 1.5em), 2px); border-radius: 0 0 2px 2px;
  border: 1px solid var(--colour); }
.special { font-size: .68em; opacity: .8; padding-top: .45em; }
.useless { --colour: var(--useless); color: var(--useless); }
.anchored { --colour: var(--anchored); color: var(--anchored); font-weight: 650; }
.anchored i::before { background: var(--colour); }
.non-robust { --colour: var(--non-robust); color: var(--non-robust); font-weight: 650; font-style: italic;
  text-decoration: underline; text-underline-offset: .15em; }
.non-robust i::before { background: repeating-linear-gradient(135deg, var(--colour) 0 2px, transparent 2px 5px); }
details { margin-top: .5rem; font-size: .9rem; color: var(--quiet); }
summary { cursor: pointer; }
table { border-collapse: collapse; margin-top: .5rem; color: var(--ink); }
th, td { text-align: left; padding: .1rem 1rem .1rem 0; border-bottom: 1px solid var(--line); white-space: pre; }
td:last-child, th:last-child { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }
@media (max-width: 36rem) { .text { grid-template-columns: 1fr; } }
@media print { article { break-inside: avoid; } }
"""


def explanation_page(
    explanations: Sequence[Explanation], title: str, cl: float, ch: float, parts: Sequence[str] = PARTS
) -> str:
    """The whole page; ``title`` and everything that comes from texts and models is escaped."""
    articles = "\n".join(_article(number, one, parts) for number, one in enumerate(explanations, 1))
    legend = "".join(
        f"<dt>{_token(Token(kind, kind, norm, False, 0), False)}</dt><dd>{escape(MEANING[kind])}</dd>"
        for kind, norm in zip(KINDS, (0.25, 0.55, 1.0), strict=True)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: useless, anchored and non-robust tokens</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>The gradient of {escape(title)}, token by token</h1>
<p>Tokens are ranked by the norm of the gradient of the task loss with respect to their embeddings. Of a sentence's n
tokens, special ones included, ranks below &lceil;{cl:g} n&rceil; are useless, ranks from &lceil;{ch:g} n&rceil; on
non-robust, those between anchored. A bar's height is the norm, relative to the sentence's largest.</p>
<dl class="legend tokens">{legend}</dl>
{articles}
</main>
</body>
</html>
"""


def verdict(explanation: Explanation) -> tuple[str, str, str]:
    """Whose loss was taken, as text, name, text."""
    said = f"the model says {explanation.prediction} ({explanation.probability:.1%})"
    if explanation.given:
        return "loss of the given label ", explanation.label, f"; {said}"
    return "loss of the predicted label ", explanation.label, f" ({explanation.probability:.1%})"


def words(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens that stand together without a space; a special token stands by itself."""
    word: list[Token] = []
    for token in tokens:
        if word and (token.space or token.part is None or word[-1].part is None):
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def rows(explanation: Explanation) -> Iterator[tuple[int, list[Token]]]:
    """The texts of a pair each by itself, with the special tokens around it: those before the first go with it."""
    number = 0
    numbered = []
    for token in explanation.tokens:
        number = number if token.part is None else token.part
        numbered.append((number, token))
    for part, group in groupby(numbered, key=lambda one: one[0]):
        yield part, [token for _, token in group]


def _article(number: int, explanation: Explanation, parts: Sequence[str]) -> str:
    before, label, after = map(escape, verdict(explanation))
    lines = []
    for part, tokens in rows(explanation):
        name = escape(parts[part]) if explanation.parts > 1 else "text"
        shown = " ".join(
            f'<span class="word">{"".join(_token(token, True) for token in word)}</span>' for word in words(tokens)
        )
        lines.append(f'<div class="text"><span>{name}</span><div class="tokens">{shown}</div></div>')
    table = "".join(
        f"<tr><td>{escape(token.text)}</td><td>{token.kind}</td><td>{token.norm:.3f}</td></tr>"
        for token in explanation.tokens
    )
    return f"""<article>
<h2>{number}. {before}<strong>{label}</strong>{after}</h2>
{"".join(lines)}
<details><summary>as a table</summary><table><thead><tr><th scope="col">token</th><th scope="col">kind</th>
<th scope="col">relative norm</th></tr></thead><tbody>{table}</tbody></table></details>
</article>"""


def _token(token: Token, titled: bool) -> str:
    kind = f"{token.kind} special" if token.part is None else token.kind
    title = f' title="{token.kind}, {token.norm:.3f} of the largest norm"' if titled else ""
    return (
        f'<span class="token {kind}" style="--norm:{token.norm:.3f}"{title}>{escape(token.text)}'
        f'<i aria-hidden="true"></i></span>'
    )
