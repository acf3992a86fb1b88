"""The phases of a run: its stages and image sizes in epochs and global steps."""

from dataclasses import dataclass

from dr_keras.config import ScheduleConfig

SOFTMAX, TRIPLETS = "softmax", "triplets"


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs of one stage at one image size, trained with one compiled model.

    Attributes:
        stage: SOFTMAX or TRIPLETS.
        size: Side of the images in pixels.
        first_epoch: The first epoch, counted from 0.
        last_epoch: The first epoch after the phase.
        first_step: The global step at which the phase begins.
        steps_per_epoch: Steps in each of its epochs.
    """

    stage: str
    size: int
    first_epoch: int
    last_epoch: int
    first_step: int
    steps_per_epoch: int

    @property
    def last_step(self) -> int:
        """The first global step after the phase."""
        return self.first_step + (self.last_epoch - self.first_epoch) * self.steps_per_epoch


def phases(
    schedule: ScheduleConfig, sizes: tuple[tuple[int, float], ...], steps_per_epoch: dict[str, int]
) -> tuple[Phase, ...]:
    """Returns the phases of a run, in order.

    An image size starts at the first epoch that begins after the smaller sizes have had their share of all steps. The
    last epoch always has the full size.

    Args:
        schedule: The settings.
        sizes: The image sizes in pixels, ascending, each with its share of all steps (`Config.sizes`).
        steps_per_epoch: Steps per epoch by stage; `schedule.steps_per_epoch` takes precedence.
    """
    stages = [SOFTMAX] * schedule.softmax_epochs + [TRIPLETS] * (schedule.epochs - schedule.softmax_epochs)
    lengths = [schedule.steps_per_epoch or steps_per_epoch[stage] for stage in stages]
    total, step = sum(lengths), 0
    result: list[Phase] = []
    for epoch, (stage, length) in enumerate(zip(stages, lengths, strict=True)):
        last_epoch = epoch == len(stages) - 1
        size = sizes[-1][0] if last_epoch else _size(sizes, step / total)
        last = result[-1] if result else None
        if last and (last.stage, last.size) == (stage, size):
            result[-1] = Phase(stage, size, last.first_epoch, epoch + 1, last.first_step, length)
        else:
            result.append(Phase(stage, size, epoch, epoch + 1, step, length))
        step += length
    return tuple(result)


def _size(sizes: tuple[tuple[int, float], ...], done: float) -> int:
    """Returns the image size once a share `done` of all steps is done."""
    for size, share in sizes[:-1]:
        if done < share - 1e-9:
            return size
        done -= share
    return sizes[-1][0]
