"""Dask workers: processes of this machine, or whatever has joined a scheduler that runs already."""

from __future__ import annotations

import importlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from mitoseg.engines.base import LANES, Engine, EngineError, Item, Result
from mitoseg.engines.local import check_workers
from mitoseg.engines.place import Place, stand_at
from mitoseg.errors import UserError
from mitoseg.extras import import_extra

log = logging.getLogger(__name__)
_LOOK = 5.0  # seconds after which it is looked whether there are workers
_AHEAD = 2  # items on their way for each lane, so that no worker waits for the scheduler


class DaskEngine(Engine):
    """See the module.

    Args:
        workers: Processes to start here; of no account where ``scheduler`` is given.
        scheduler: Address of a scheduler that runs already, such as ``tcp://10.0.0.1:8786``.
        timeout: Seconds to wait for the scheduler, for the first worker, and for another one when all have gone.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(self, workers: int = 1, scheduler: str | None = None, timeout: float = 60.0) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise UserError("the engine's timeout is not a number of seconds", timeout, "give a number above 0")
        self.workers, self.scheduler, self.timeout = check_workers(workers), scheduler, timeout
        self._cluster: Any = None
        self._client: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """See `Engine.start`.

        Raises:
            UserError: Dask is not installed, no scheduler answers, or no worker comes.
        """
        distributed = import_extra("distributed", "distributed", "cluster")
        if self.scheduler is None:
            self._cluster = self._make_cluster()
        try:
            address = self.scheduler or self._cluster
            self._client = distributed.Client(address, timeout=self.timeout, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            remedy = "check the address, and that dask scheduler runs there"
            raise UserError(f"no Dask scheduler answers within {self.timeout:g} s", self.scheduler, remedy) from error
        self._wait_for_workers(1 if self.scheduler else self._expected())
        self._check_installed()

    def close(self) -> None:
        """See `Engine.close`."""
        client, cluster, folder = self._client, self._cluster, self._folder
        self._client = self._cluster = self._folder = None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # connections that end here are no news
        if client is not None:
            client.close()
        if cluster is not None:
            cluster.close()
        if folder is not None:
            folder.cleanup()

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        futures = [self._submit(_ask, function, workers=[address]) for address in self._client.nthreads()]
        return [self._result(future) for future in futures]

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        on_done: Callable[[Item, Result], None],
    ) -> None:
        """See `Engine.map`."""
        coming = iter(items)
        done: SimpleQueue[Any] = SimpleQueue()
        pending: dict[Any, Item] = {}
        failure: Exception | None = None
        while True:
            for item in self._next(coming, len(pending)) if failure is None else ():
                future = self._submit(_call, function, item)
                pending[future] = item
                future.add_done_callback(done.put)
            if not pending:
                break
            try:
                future = self._wait(done)
                on_done(pending.pop(future), self._result(future))
            except EngineError:
                raise
            except Exception as error:  # what was begun shall end
                failure = failure or error
        if failure is not None:
            raise failure

    def _make_cluster(self) -> Any:  # noqa: ANN401 (Dask has no types)
        """Worker processes on this machine."""
        distributed = import_extra("distributed", "distributed", "cluster")
        self._folder = tempfile.TemporaryDirectory(prefix="mitoseg-dask-", ignore_cleanup_errors=True)
        return distributed.LocalCluster(
            n_workers=self.workers,
            threads_per_worker=LANES,
            processes=True,
            memory_limit=0,  # tiles are chosen by the memory there is; Dask counts in another way
            dashboard_address=":0",  # any port: that of the first is taken where two run
            silence_logs=logging.ERROR,
            local_directory=self._folder.name,
        )

    def _expected(self) -> int:
        """Workers to wait for before the work begins."""
        return self.workers

    def _wait_for_workers(self, count: int) -> None:
        end = time.monotonic() + self.timeout
        while len(self._client.nthreads()) < count:
            if time.monotonic() > end:
                here = "the scheduler" if self.scheduler is None else self.scheduler
                what = f"{len(self._client.nthreads())} of {count} Dask workers have come within {self.timeout:g} s to"
                raise UserError(what, here, "start workers there, or give a longer engine.timeout=")
            time.sleep(0.1)

    def _check_installed(self) -> None:
        """Have each worker import mitoseg: one that cannot would die of the first message that needs it."""
        for address in self._client.nthreads():
            future = self._submit(importlib.import_module, __name__, workers=[address])
            error = future.exception(timeout=10 * self.timeout)
            if error is not None:
                what = f"the Dask worker at {address} has no such mitoseg ({error})"
                raise UserError(what, None, 'install the same "mitoseg[cluster]" there')

    def _next(self, coming: Iterator[Item], pending: int) -> Iterator[Item]:
        """The items that are to be sent now; workers may come and go."""
        room = _AHEAD * sum(self._client.nthreads().values()) - pending
        return islice(coming, max(room, 0 if pending else 1))

    def _wait(self, done: SimpleQueue[Any]) -> Any:  # noqa: ANN401
        """The next future that is done.

        Raises:
            EngineError: There has been no worker for too long, or the scheduler has gone.
        """
        empty_since: float | None = None
        while True:
            try:
                return done.get(timeout=min(_LOOK, self.timeout))
            except Empty:
                if self._client.status != "running":
                    raise EngineError("the Dask scheduler has gone", self.scheduler, "run the command again") from None
                now = time.monotonic()
                empty_since = None if self._client.nthreads() else empty_since or now
                if empty_since is not None and now - empty_since >= self.timeout:
                    remedy = "start workers, and run the same command again"
                    raise EngineError("all Dask workers have gone from", self.scheduler or "here", remedy) from None

    def _submit(self, call: Callable[..., Any], *arguments: object, workers: list[str] | None = None) -> Any:  # noqa: ANN401
        return self._client.submit(call, *arguments, pure=False, workers=workers)

    def _result(self, future: Any) -> Any:  # noqa: ANN401
        """What became of an item.

        Raises:
            EngineError: Every worker that tried died, or the scheduler has gone.
        """
        distributed = import_extra("distributed", "distributed", "cluster")
        try:
            return future.result(timeout=None if future.done() else 10 * self.timeout)
        except distributed.KilledWorker as error:
            remedy = "perhaps memory is short: give less of it"
            raise EngineError("several Dask workers died over the same part", str(error.task), remedy) from error
        except (distributed.CancelledError, TimeoutError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the function itself
            raise EngineError("the Dask scheduler or a worker has gone", self.scheduler, "run it again") from error


def _ask(function: Callable[[], Result]) -> Result:
    _stand()
    return function()


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    _stand()
    return function(item)


def _stand() -> None:
    """Take the place that the worker's name ends with: 0, 1, ... in a cluster that Dask has started."""
    from distributed import get_worker

    number = re.search(r"\d+$", str(get_worker().name))
    stand_at(Place(int(number[0]) if number and len(number[0]) < 5 else 0))
