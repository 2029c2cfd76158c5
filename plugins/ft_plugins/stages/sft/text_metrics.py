"""BLEU-4 and ROUGE of generated answers against the data's answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

PACKAGES = {"jieba": "jieba", "rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}
"""Module -> what pip installs."""
CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def missing_packages() -> list[str]:
    """What pip has to install before `scores` works; nothing is imported."""
    return [pip for module, pip in PACKAGES.items() if find_spec(module) is None]


def scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """``bleu-4``, ``rouge-1``, ``rouge-2`` and ``rouge-l``, from 0 to 100.

    BLEU is sacrebleu's corpus score; ROUGE is the mean F-measure of rouge-score over the pairs. jieba segments texts
    that contain Chinese. For BLEU it segments all texts if any label contains Chinese.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if any(map(CHINESE.search, labels)):
        cut = [[" ".join(_words(text)) for text in texts] for texts in (predictions, labels)]
        bleu = sacrebleu.corpus_bleu(cut[0], [cut[1]], tokenize="none", force=True)
    else:
        bleu = sacrebleu.corpus_bleu(list(predictions), [list(labels)], force=True)
    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
    scorer = RougeScorer(list(names.values()), tokenizer=_Tokenizer())
    found = [scorer.score(label, text) for text, label in zip(predictions, labels, strict=True)]
    means = {name: 100 * sum(one[theirs].fmeasure for one in found) / len(found) for name, theirs in names.items()}
    return {"bleu-4": bleu.score, **means}


class _Tokenizer:
    """rouge-score's tokenizer, which knows Latin letters and digits only; jieba for texts that contain Chinese."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case, without punctuation."""
        if CHINESE.search(text):
            return [word.lower() for word in _words(text) if any(map(str.isalnum, word))]
        from rouge_score.tokenize import tokenize

        return tokenize(text, None)


def _words(text: str) -> list[str]:
    return [word for word in _jieba().cut(text) if word.strip()]


@cache
def _jieba() -> Any:
    """jieba without its cache: that is a file in /tmp which any user can write, and jieba reads it with marshal."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's escape sequences are invalid since Python 3.12
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
