"""What fields of two parts have in common: parameters, variables and tensors closed over."""


class TwoPartField:
    """What `Field` is to an equation of one part.

    Args:
        parts: both parts, each a `Field`.
        captures: the tensors that either closes over, each once.
    """

    def __init__(self, parts, captures):
        self._parts = parts
        self._captures = list(captures)
        first = parts[0]
        self._parameters = first.theta[: len(first.theta) - len(first.captures)]

    @property
    def variables(self):
        """Variables that either part reads by itself."""
        return once(variable for part in self._parts for variable in part.variables)

    @property
    def captures(self):
        """Tensors that either part closes over: the last entries of `theta`."""
        return list(self._captures)

    @property
    def theta(self):
        """The differentiable tensors: floating parameters, then captured tensors."""
        return [*self._parameters, *self._captures]


def once(items):
    """The items without repetitions, told apart by identity."""
    return list({id(item): item for item in items}.values())
