"""The course of a run: its stages and image sizes, epoch by epoch, in global steps."""

from dataclasses import dataclass

from dr_keras.config import ScheduleConfig

SOFTMAX, TRIPLETS = "softmax", "triplets"


@dataclass(frozen=True)
class Phase:
    """Epochs of one stage at one image size, which are trained by one compiled model.

    Attributes:
        stage: SOFTMAX or TRIPLETS.
        size: the side of the images.
        first_epoch, last_epoch: counted from 0; the last one is not of the phase any more.
        first_step: the global step that the phase begins with.
        steps_per_epoch: of each of its epochs.
    """

    stage: str
    size: int
    first_epoch: int
    last_epoch: int
    first_step: int
    steps_per_epoch: int

    @property
    def last_step(self) -> int:
        """The first global step behind the phase."""
        return self.first_step + (self.last_epoch - self.first_epoch) * self.steps_per_epoch


def phases(
    schedule: ScheduleConfig, sizes: tuple[tuple[int, float], ...], steps_per_epoch: dict[str, int]
) -> tuple[Phase, ...]:
    """The phases of a run, in order.

    Args:
        schedule: the settings.
        sizes: the image sizes in pixels, each with its share of all steps (`Config.sizes`).
        steps_per_epoch: by stage; `schedule.steps_per_epoch` takes precedence.

    Returns:
        The phases; an image size begins with the first epoch by whose beginning the smaller sizes have had their share
        of all steps. The last epoch is of the full size in any case.
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
    """The image size when this share of all steps is done."""
    for size, share in sizes[:-1]:
        if done < share - 1e-9:
            return size
        done -= share
    return sizes[-1][0]
