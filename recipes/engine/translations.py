"""How good translations are: BLEU, BLEU by sentence length, and where a decoder looked."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from recipes.engine.data.translation import words_of

# By test set: the texts `source`, `reference` and `translation`, sentence by sentence.
Outputs = Mapping[str, Mapping[str, Sequence[str]]]

GROUPS = 6  # of sentence lengths


def bleu(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False) -> tuple[float, str]:
    """BLEU of sentences as one writes them, by sacreBLEU with its own tokenization.

    Args:
        hypotheses: translations.
        references: one for each.
        lowercase: whether to ignore case.

    Returns:
        BLEU in per cent, and the signature that says how it was computed.

    Reference:
        Post, 2018, A call for clarity in reporting BLEU scores, arXiv:1804.08771.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(lowercase=lowercase)
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return score, str(metric.get_signature())


def bleu_by_length(outputs: Outputs, lowercase: bool = False) -> list[tuple[int, int, int, float]]:
    """BLEU of the sentences of all test sets in groups of about equal size, by the words of the source.

    Returns:
        (shortest, longest, sentences, BLEU) of each group, the short ones first.
    """
    texts = {
        key: [text for test in outputs.values() for text in test[key]]
        for key in ("source", "reference", "translation")
    }
    lengths = np.array([len(words_of(source)) for source in texts["source"]])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, GROUPS + 1)).astype(int))
    edges[0] -= 1  # a group takes its upper edge in, and the first one the shortest too
    groups = []
    for low, high in itertools.pairwise(edges):
        members = np.flatnonzero((lengths > low) & (lengths <= high))
        chosen = ([texts[key][i] for i in members] for key in ("translation", "reference"))
        groups.append((int(low) + 1, int(high), len(members), bleu(*chosen, lowercase)[0]))
    return groups


def draw_by_length(runs: Mapping[str, Outputs], lowercase: bool, title: str) -> Figure:
    """BLEU by sentence length, one line a run; of two runs also the first's lead.

    Args:
        runs: translations of the same test sets, by what the run is called.
        lowercase: whether BLEU ignores case.
        title: of the figure.
    """
    groups = {name: bleu_by_length(outputs, lowercase) for name, outputs in runs.items()}
    scores = {name: [group[-1] for group in rows] for name, rows in groups.items()}
    labels = [
        f"{low}-{high}\nn={count}" if low < high else f"{low}\nn={count}"
        for low, high, count, _ in next(iter(groups.values()))
    ]
    figure = Figure(figsize=(5.5 * len(runs), 3.8), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for name, values in scores.items():
        panels[0].plot(values, "o-", label=name)
    panels[0].set_ylabel("BLEU")
    panels[0].legend()
    if len(scores) == 2:
        (first, ours), (second, theirs) = scores.items()
        panels[1].bar(range(len(labels)), np.subtract(ours, theirs), color="tab:gray")
        panels[1].axhline(0, color="black", linewidth=0.8)
        panels[1].set_ylabel("difference in BLEU")
        panels[1].set_title(f"{first}  minus  {second}", fontsize="medium")
    for axes in panels:
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("words in the source sentence")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def draw_alignments(
    alignments: Sequence[tuple[Sequence[str], Sequence[str], np.ndarray]], title: str
) -> Figure:
    """Attention weights as images, three a row.

    Args:
        alignments: source words, words said, and weights (said, source), for each sentence.
        title: of the figure.
    """
    rows = -(-len(alignments) // 3)
    figure = Figure(figsize=(13, 4.2 * rows + 0.3), layout="constrained")
    for place, (source, said, weights) in enumerate(alignments, start=1):
        axes = figure.add_subplot(rows, 3, place)
        axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(said)), said)
        axes.tick_params(labelsize=8)
    figure.suptitle(title)
    return figure
