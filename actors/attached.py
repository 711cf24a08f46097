"""An executor on the pools of a service, which it leaves running."""

from dataclasses import dataclass

import numpy as np
import ray
import ray.exceptions

from actors.cluster import Connection, join
from actors.dispatch import PooledExecutor, Task
from actors.outcome import Outcome
from actors.policy import Patience
from actors.pool import Worker
from actors.reading import TextRequest
from actors.service import Service, find_service
from actors.store import RemoteBlockSource
from longmem.errors import FingerprintError
from longmem.model_source import ModelDescription
from longmem.types import DocumentKey, Segment

NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Answer:
    """The end of a text request, by the number that `submit_text` gave it."""

    number: int
    outcome: Outcome


@dataclass(eq=False)
class _TextTask(Task):
    request: TextRequest | None = None

    def __str__(self) -> str:
        return str(self.request)


class AttachedExecutor(PooledExecutor):
    """Shares a service's workers with other jobs and clients. Each of them keeps two tasks at every worker, which
    works in the order of arrival: so all of them advance alike.

    Raises ClusterError when a worker has ended for good, FingerprintError when the service holds another model than
    the one that is offered.
    """

    def __init__(
        self,
        service: Service,
        connection: Connection,
        *,
        patience: Patience | None = None,
        offered: ModelDescription | None = None,
    ) -> None:
        self.service = service
        self.connection = connection
        self.workers = service.workers()
        self._source = RemoteBlockSource(service.actor_names["store"])
        self._num_texts = 0
        self._answers: list[Answer] = []
        super().__init__(self.workers, patience or service.shape.patience)
        # a service is whole, but one of its workers may be starting again just now
        self.begin(elastic=True)
        if offered is not None:
            check_model(self.describe(), offered, service.name)

    def submit_text(self, request: TextRequest) -> int:
        """Start a request that an encoder answers as a whole, in a slot of stage `encode`; returns its number."""
        self._num_texts += 1
        place = Segment(DocumentKey("text request", ""), self._num_texts, 0, NO_TOKENS, NO_TOKENS)
        self._waiting["encode"].append(_TextTask("encode", place, request=request))
        self._send_waiting()
        return self._num_texts

    def answers(self) -> list[Answer]:
        """Text requests that ended since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Let go; the pools go on. What was sent and not ended is finished by them, and its result dropped."""
        super().close()
        self.connection.close()

    def _send(self, task: Task, worker: Worker) -> None:
        if not isinstance(task, _TextTask):
            super()._send(task, worker)
            return
        self._sent(task, worker, worker.actor.answer.remote(task.request, self._source))

    def _report(self, task: Task, outcome: Outcome) -> None:
        if isinstance(task, _TextTask):
            self._answers.append(Answer(task.segment.index, outcome))
        else:
            super()._report(task, outcome)

    def _lost_objects(self, task: Task, error: ray.exceptions.RayError) -> None:
        if isinstance(task, _TextTask):
            self._try_again(task, error, blame=False)
        else:
            super()._lost_objects(task, error)


def attach(
    address: str, name: str, *, patience: Patience | None = None, offered: ModelDescription | None = None
) -> AttachedExecutor:
    """Join the cluster and attach to a service. Raises ClusterError when there is no such cluster or service,
    FingerprintError when it holds another model than `offered`."""
    connection = join(address)
    try:
        return AttachedExecutor(find_service(name), connection, patience=patience, offered=offered)
    except BaseException:
        connection.close()
        raise


def check_model(held: ModelDescription, offered: ModelDescription, service: str) -> None:
    """Raises FingerprintError unless both give the same numbers."""
    mine, theirs = ({**vars(each.fingerprint), "sidenet": each.sidenet, **each.settings} for each in (held, offered))
    differences = [f"{key}: {value!r} != {theirs[key]!r}" for key, value in mine.items() if value != theirs[key]]
    if differences:
        raise FingerprintError(
            f"service {service!r} holds another model (held != offered): {'; '.join(differences)}; use "
            "the one that it holds (leave out --model), or start another service"
        )
