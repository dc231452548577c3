"""Classifiers of images and sentences that are trained already."""

from pathlib import Path
from typing import NamedTuple

from data.captions.vocabulary import Vocabulary
from data.settings import require
from finetune.tuning.splits import saved_names
from finetune.vilt.config import ViltFinetuneConfig
from finetune.vilt.model import ViltClassifier
from pretrain.configuration.load import load
from pretrain.encoder import load_encoder
from pretrain.records.checkpoint import find_handed_on
from pretrain.records.kinds import Kind, kind_of_run
from pretrain.training.state import load_weights
from pretrain.vilt.vocabulary import vocabulary_of


class Trained(NamedTuple):
    """A trained classifier, in evaluation mode, with what it needs to be used.

    Attributes:
        model: The classifier, on the CPU.
        vocabulary: Of its sentences.
        config: Of the run that trained it.
    """

    model: ViltClassifier
    vocabulary: Vocabulary
    config: ViltFinetuneConfig


def load_vilt_classifier(path: str | Path) -> Trained:
    """Load the classifier of a run of `finetune/vilt/classify.py`.

    Args:
        path: The run's folder.

    Raises:
        UserError: It is no such run, or has no checkpoint yet.
    """
    run = Path(path)
    require(
        kind_of_run(run) is Kind.IMAGE_TEXT_TUNING,
        f"{run} is no classifier of images and sentences; name a run.dir of "
        "finetune/vilt/classify.py",
    )
    checkpoint = find_handed_on(run)
    config = load(ViltFinetuneConfig, [str(run / "config.yaml")])
    vocabulary = vocabulary_of(run, "the run's vocabulary")
    encoder, names = load_encoder(run), saved_names(run)
    assert names is not None, "the encoder of such a run names its classes"
    model = ViltClassifier(config, encoder, vocabulary, names)
    load_weights(model, checkpoint)
    return Trained(model.eval(), vocabulary, config)
