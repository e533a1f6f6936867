"""What cannot be asked of a stream."""

from __future__ import annotations

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Samples, Stream
from fusionkit.errors import ConfigError

# Keys of `loader` that choose samples by what is known of all of them.
_COUNTED = ("shots", "shots_per_class", "balanced", "bucket_by_length", "tokens_per_batch")


def check_stream(experiment: Experiment, name: str, stream: Stream) -> None:
    """Check that an experiment asks nothing of a stream that only counted samples can give.

    Raises:
        ConfigError: It does.
    """
    config, train = experiment.trainer, name == "train"
    limit = {
        "train": config.limit_train_batches,
        "val": config.limit_val_batches,
        "test": config.limit_test_batches,
    }[name]
    counted = (train and stream.length is not None) or isinstance(limit, int)
    count = f"set data.samples_per_epoch, or trainer.limit_{name}_batches to a number of batches"
    asked = [key for key in _COUNTED if getattr(experiment.loader, key)]
    wrong = [
        (
            experiment.missing.mask is not None,
            "missing.mask: a mask numbers the samples of a split, and a stream has no numbers; "
            "write shards that lack the fields.",
        ),
        (
            train and experiment.cache.roles not in ("auto", []),
            "cache: what is in it is looked up before training, and a stream is read as it comes; "
            "set cache: false.",
        ),
        (
            train and experiment.optimizer.schedule == "cosine" and not counted,
            f"optimizer.schedule: cosine has to know how long training is, and nobody knows how "
            f"many samples this stream has; {count}, or take the schedule step.",
        ),
        (
            train and config.save_every_n_steps is not None and stream.length is None,
            "trainer.save_every_n_steps: within an epoch only a stream with a stated epoch "
            "can be continued; set data.samples_per_epoch.",
        ),
        (
            train and bool(asked),
            f"loader.{' and loader.'.join(asked)}: batches of a stream are samples as they come; "
            f"leave it out.",
        ),
        (
            isinstance(limit, float) and limit < 1 and not counted,
            f"trainer.limit_{name}_batches: {limit} is a share of samples that nobody has counted; "
            f"give a number of batches.",
        ),
    ]
    for found, message in wrong:
        if found:
            raise ConfigError(message)


def check_shared(processes: int, samples: Samples) -> None:
    """Check that several processes can train on one split.

    Raises:
        ConfigError: It is a stream whose epochs they cannot end together.
    """
    if processes > 1 and isinstance(samples, Stream) and samples.length is None:
        raise ConfigError(
            f"trainer.devices: {processes} processes have to end an epoch together, and "
            f"nobody knows how many samples this stream has. Set data.samples_per_epoch."
        )
