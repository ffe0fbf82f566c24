"""Every engine: the caller itself, worker processes, and Dask workers; some of them are killed."""

import os
import signal
import subprocess
import sys

import pieces
import psutil
import pytest

from mitoseg.engines import DaskEngine, EngineError, LocalEngine, Prepared
from mitoseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def mapped(engine, function, items):
    found = {}

    def take(item, result):
        assert item not in found
        found[item] = result

    engine.map(function, items, take)
    return found


@pytest.fixture(scope="module")
def pool():
    with LocalEngine(2) as engine:
        yield engine


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Where what Dask's workers print goes."""
    return tmp_path_factory.mktemp("dask") / "stderr"


@pytest.fixture(scope="module")
def dask(said):
    pytest.importorskip("distributed")
    before = os.dup(2)
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    with DaskEngine(2) as running:
        os.dup2(before, 2)
        yield running


@pytest.fixture(params=["caller", "pool", "dask"])
def engine(request):
    return LocalEngine() if request.param == "caller" else request.getfixturevalue(request.param)


@pytest.fixture(params=["pool", "dask"])
def workers(request):
    return request.getfixturevalue(request.param)


def test_every_item_is_done_once(engine):
    assert mapped(engine, pieces.square, range(40)) == {n: n * n for n in range(40)}
    assert mapped(engine, pieces.square, []) == {}


def test_items_are_taken_as_workers_get_free(pool):
    """A volume may have more tiles than anybody wants to hold."""
    taken, most = [], []

    def items():
        for number in range(30):
            taken.append(number)
            yield number

    done = []

    def take(number, _):
        done.append(number)
        most.append(len(taken) - len(done))

    pool.map(pieces.square, items(), take)
    assert max(most) <= 4


def test_workers_are_other_processes_each_with_its_rank(workers):
    places = workers.ask(pieces.where)
    assert sorted(rank for _, rank in places) == [0, 1]
    assert len({pid for pid, _ in places} - {os.getpid()}) == 2
    assert set(mapped(workers, pieces.slow_where, range(12)).values()) == {pid for pid, _ in places}


def test_the_caller_does_it_itself():
    assert LocalEngine().ask(pieces.where) == [(os.getpid(), 0)]


def test_an_error_of_the_function_ends_the_run_and_the_engine_goes_on(engine, request):
    done = []
    with pytest.raises(UserError, match="no such number: 3; choose another"):
        engine.map(pieces.refuse_three, range(3000), lambda number, _: done.append(number))
    assert len(done) < 1500
    assert mapped(engine, pieces.square, range(5)) == {n: n * n for n in range(5)}
    if isinstance(engine, DaskEngine):
        assert request.getfixturevalue("said").read_text() == ""
    else:
        assert {0, 1, 2} <= set(done)


def test_an_error_of_the_caller_ends_the_run_and_the_engine_goes_on(engine):
    def refuse(number, _):
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        engine.map(pieces.square, range(100), refuse)
    assert mapped(engine, pieces.square, range(5)) == {n: n * n for n in range(5)}


def test_an_error_that_cannot_travel_is_told(pool):
    with pytest.raises(RuntimeError, match="OddError: 0 x"):
        mapped(pool, pieces.raise_odd, range(1))


def test_what_a_killed_worker_had_is_done_by_another(workers, tmp_path, caplog):
    found = mapped(workers, pieces.KillOnce(tmp_path, 5), range(20))
    assert sorted(found) == list(range(20))
    assert all(number == answer for number, (answer, _) in found.items())
    assert (tmp_path / "killed").exists()
    if isinstance(workers, LocalEngine):
        assert "a worker process was killed; another one repeats its part" in caplog.text
    assert sorted(rank for _, rank in workers.ask(pieces.where)) == [0, 1]


def test_a_part_that_kills_every_worker_is_given_up(pool):
    with pytest.raises(EngineError, match="3 worker processes were killed over the same part"):
        pool.map(pieces.die, [7], lambda *_: None)
    assert mapped(pool, pieces.square, range(3)) == {0: 0, 1: 1, 2: 4}


def test_a_worker_killed_before_the_first_item_is_replaced(workers):
    before = [pid for pid, _ in workers.ask(pieces.where)]
    os.kill(before[0], signal.SIGKILL)
    places = workers.ask(pieces.where)
    ranks = [rank for _, rank in places]
    assert (ranks if isinstance(workers, LocalEngine) else sorted(ranks)) == [0, 1]
    assert before[0] not in {pid for pid, _ in places}
    with pytest.raises(EngineError, match=r"3 (worker processes were killed|Dask workers died) before the work began"):
        workers.ask(pieces.die)
    assert not isinstance(workers, LocalEngine) or len(workers.ask(pieces.where)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_workers_end_with_a_process_that_is_killed():
    """Though they are busy: what they would still write is wanted by nobody."""
    code = "import time; from mitoseg.engines import LocalEngine\nif __name__ == '__main__':\n"
    code += "    with LocalEngine(2) as e: print(e.ask(int), flush=True); e.map(time.sleep, [60] * 4, print)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.kill()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_prepared_function_is_made_once_in_each_worker(workers, tmp_path):
    function = Prepared(pieces.Making(tmp_path))
    assert mapped(workers, function, range(20)) == {n: n * n for n in range(20)}
    made = [path.name.split(".")[0] for path in tmp_path.iterdir()]
    assert len(made) == len(set(made)) <= 2
    mapped(workers, Prepared(pieces.Making(tmp_path)), range(1))
    assert len(list(tmp_path.iterdir())) == len(made) + 1


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "two", None])
def test_a_number_of_workers(workers):
    with pytest.raises(UserError, match="not a number of workers"):
        LocalEngine(workers)
