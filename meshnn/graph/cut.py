"""Cuts between operators: what crosses one, and the standalone part between two."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from meshnn.graph.ir import BITS, Graph, Operator
from meshnn.graph.verify import refuse, verify

_UNREPEATABLE = {"RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"}


@dataclass(frozen=True, slots=True)
class Flow:
    """Who makes and who reads every tensor of a graph; operators that only compute constants count as constants.

    `producer[t]` is an operator index, or -1 for a model input; `consumers[t]` are operator indices, and the number
    of operators stands for "the model's answer" where a model output is made by no operator that runs.
    """

    constant_operators: frozenset[int]
    constants: frozenset[int]
    producer: dict[int, int]
    consumers: dict[int, tuple[int, ...]]


def flow(graph: Graph) -> Flow:
    """Analyse a verified graph once; everything below can share the result."""
    constants = {index for index, tensor in enumerate(graph.tensors) if tensor.constant}
    stateful = {index for index, tensor in enumerate(graph.tensors) if tensor.variable}
    folded: set[int] = set()
    producer = dict.fromkeys(graph.inputs, -1)
    consumers: dict[int, list[int]] = {}
    for index, operator in enumerate(graph.operators):
        read = {t for t in operator.inputs if t >= 0}
        if _folds(operator) and read <= constants:
            folded.add(index)
            constants.update(operator.outputs)
            continue
        for t in operator.outputs:
            producer[t] = index
        for t in sorted(read - constants - stateful):
            consumers.setdefault(t, []).append(index)
    for t in graph.outputs:
        if t in constants or producer.get(t, -1) < 0:
            producer.setdefault(t, -1)
            consumers.setdefault(t, []).append(len(graph.operators))
    return Flow(
        frozenset(folded),
        frozenset(constants - set(graph.inputs)),
        producer,
        {t: tuple(dict.fromkeys(readers)) for t, readers in consumers.items()},
    )


def _folds(operator: Operator) -> bool:
    """Whether an operator of constants gives the same result wherever it runs."""
    return bool(operator.inputs) and operator.kind not in _UNREPEATABLE and not operator.kind.startswith("CUSTOM:")


def live(graph: Graph, position: int, known: Flow | None = None) -> tuple[int, ...]:
    """Tensors that cross the boundary before operator `position`: what the operators from there on need.

    Model inputs that are read later cross too. The order is that of `fragment(graph, position, last).inputs`.
    """
    return fragment_inputs(graph, position, len(graph.operators) - 1, known)


def fragment_inputs(graph: Graph, first: int, last: int, known: Flow | None = None) -> tuple[int, ...]:
    """Tensors operators `first` to `last` (inclusive) read and do not make: model inputs first, then by index."""
    known = known or flow(graph)
    end = len(graph.operators) if last == len(graph.operators) - 1 else last
    needed = {
        t
        for t, readers in known.consumers.items()
        if t not in known.constants and known.producer[t] < first and any(first <= reader <= end for reader in readers)
    }
    return _in_order(needed, graph.inputs)


def fragment_outputs(graph: Graph, first: int, last: int, known: Flow | None = None) -> tuple[int, ...]:
    """Tensors operators `first` to `last` make for later operators or as model outputs: model outputs first.

    A model output that no running operator makes (a constant, an input) is given by the last fragment.
    """
    known = known or flow(graph)
    total = len(graph.operators)
    given = {
        t
        for t, maker in known.producer.items()
        if first <= maker <= last
        and (t in graph.outputs or any(reader > last for reader in known.consumers.get(t, ())))
    }
    if last == total - 1:
        given.update(t for t in graph.outputs if total in known.consumers.get(t, ()))
    return _in_order(given, graph.outputs)


def _in_order(tensors: set[int], leading: tuple[int, ...]) -> tuple[int, ...]:
    """A set of tensors as a tuple: those of `leading` in its order, then the others by index."""
    head = [t for t in dict.fromkeys(leading) if t in tensors]
    return (*head, *sorted(tensors.difference(head)))


def refusal(graph: Graph, position: int, known: Flow | None = None) -> str | None:
    """Why the boundary before operator `position` cannot be cut; None where it can. The two ends always can."""
    if not 0 <= position <= len(graph.operators):
        return f"there is no boundary {position} among {len(graph.operators)} operators"
    if position in (0, len(graph.operators)):
        return None
    known = known or flow(graph)
    for t in live(graph, position, known):
        tensor = graph.tensors[t]
        if tensor.dtype not in BITS:
            return f"tensor {t} ({tensor.name}) of type {tensor.dtype} crosses, whose size only the run determines"
        if not tensor.shape_known:
            return f"tensor {t} ({tensor.name}) crosses, whose shape only the run determines"
    state = _state_across(graph, position)
    if state is not None:
        return f"operators before and behind share the state in tensor {state}"
    if all(index in known.constant_operators for index in range(position)):
        return "there is nothing to run before it: only constants are made there"
    return None


def _state_across(graph: Graph, position: int) -> int | None:
    """A variable tensor that operators on both sides of a boundary use, if there is one."""
    sides: tuple[set[int], set[int]] = (set(), set())
    for index, operator in enumerate(graph.operators):
        used = (*operator.inputs, *operator.outputs, *operator.intermediates)
        sides[index >= position].update(t for t in used if t >= 0 and graph.tensors[t].variable)
    return min(sides[0] & sides[1], default=None)


def members(graph: Graph, first: int, last: int, known: Flow | None = None) -> tuple[int, ...]:
    """Operators a standalone fragment holds, in order: those that run, and the constant ones they need, cloned."""
    known = known or flow(graph)
    chosen = {index for index in range(first, last + 1) if index not in known.constant_operators}
    maker = {t: i for i in known.constant_operators for t in graph.operators[i].outputs}
    wanted = [t for index in chosen for t in graph.operators[index].inputs]
    wanted += fragment_outputs(graph, first, last, known)
    while wanted:
        index = maker.get(wanted.pop(), -1)
        if index >= 0 and index not in chosen:
            chosen.add(index)
            wanted += graph.operators[index].inputs
    return tuple(sorted(chosen))


def fragment(graph: Graph, first: int, last: int) -> Graph:
    """Operators `first` to `last` (inclusive) as a graph of its own; weights stay views, unused tensors are dropped.

    Its inputs and outputs are `fragment_inputs` and `fragment_outputs` in that order. Raises ModelError where a
    boundary cannot be cut or nothing runs between the two.
    """
    total = len(graph.operators)
    if not 0 <= first <= last < total:
        raise refuse("bad_range", f"operators {first} to {last}", f"the model has operators 0 to {total - 1}")
    known = flow(graph)
    for position in (first, last + 1):
        reason = refusal(graph, position, known)
        if reason is not None:
            raise refuse("no_cut", f"boundary {position}", reason)
    outputs = fragment_outputs(graph, first, last, known)
    if not outputs:
        raise refuse("nothing_to_run", f"operators {first} to {last}", "make nothing that anyone reads")
    made = compact(
        dataclasses.replace(
            graph,
            operators=tuple(graph.operators[index] for index in members(graph, first, last, known)),
            inputs=fragment_inputs(graph, first, last, known),
            outputs=outputs,
            metadata=(),
            file=None,
        )
    )
    verify(made, name=f"operators {first} to {last}")
    return made


def compact(graph: Graph) -> Graph:
    """The graph without tensors that nothing uses; inputs come first, outputs next, then the others in their order."""
    used = dict.fromkeys((*graph.inputs, *graph.outputs))
    inner = {t for operator in graph.operators for t in (*operator.inputs, *operator.outputs, *operator.intermediates)}
    used.update(dict.fromkeys(sorted(t for t in inner if t >= 0)))
    place = {old: new for new, old in enumerate(used)}
    place[-1] = -1

    def moved(tensors: tuple[int, ...]) -> tuple[int, ...]:
        """Tensor indices in the new numbering."""
        return tuple(place[t] for t in tensors)

    return dataclasses.replace(
        graph,
        tensors=tuple(graph.tensors[old] for old in used),
        inputs=moved(graph.inputs),
        outputs=moved(graph.outputs),
        operators=tuple(
            dataclasses.replace(
                operator,
                inputs=moved(operator.inputs),
                outputs=moved(operator.outputs),
                intermediates=moved(operator.intermediates),
            )
            for operator in graph.operators
        ),
    )
