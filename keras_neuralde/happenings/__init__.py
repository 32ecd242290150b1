"""What happens between two steps: roots, preset times, conditions and jumps, and their affects."""

from keras_neuralde.happenings.channels import Channel
from keras_neuralde.happenings.decisions import Happenings

__all__ = ["Channel", "Happenings"]
