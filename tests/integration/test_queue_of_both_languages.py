"""PHP and Python on the same queues and the same marks: what one writes, the other takes."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from kestrel_stack.queue import Counts, Envelope, Producer, Queue
from kestrel_stack.queue.envelope import ParkedRecord
from kestrel_stack.queue.once import Busy, Once, SqliteStore
from support.beanstalkd import BeanstalkdProcess
from support.broker import BrokerProcess

AUTOLOAD = Path(__file__).parents[2] / "php" / "autoload.php"
QUEUES = [{"name": "mail", "language": "php", "retry_delays": [600]}]
DAY = 86_400
BEGIN = """
use KestrelStack\\Queue\\{Envelope, Once, ParkedRecord, PdoStore, Producer, Queue};
use KestrelStack\\Queue\\Errors\\Busy;
require $argv[1];
$queue = fn () => Queue::open($argv[2], [['name' => 'mail', 'language' => 'php', 'retry_delays' => [600]]]);
$once = fn () => new Once(new PdoStore(new PDO('sqlite:' . $argv[2])), 60);
"""


def php(code, *arguments):
    """Run PHP code and return what it prints."""
    program = shutil.which("php")
    assert program, "there is no php here; install Debian's php-cli"
    run = subprocess.run(
        [program, "-d", "display_errors=stderr", "-r", BEGIN + code, str(AUTOLOAD), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout


@pytest.fixture(params=["kestrel", "beanstalkd"])
def url(request, tmp_path):
    with BrokerProcess(tmp_path) if request.param == "kestrel" else BeanstalkdProcess(tmp_path) as server:
        yield f"{request.param}://{server.address}/shop"


@pytest.fixture
def store(url):
    with Queue.open(url, queues=QUEUES) as opened:
        yield opened


def test_what_php_enqueues_python_takes_and_counts(url, store):
    enqueue = """
        $producer = Producer::on($queue(), 'acme');
        echo $producer->enqueue('SendMail', ['to' => 'Zoë', 'empty' => new stdClass()], queue: 'mail');
        $producer->enqueue('SendMail', ['n' => 1], queue: 'mail', delay: 600);
    """
    job = php(enqueue, url)
    assert store.count("mail") == Counts(1, 0, {600: 1}, 0)
    worker = store.worker("mail")
    reservation = worker.reserve(5)
    found = Envelope.decode(reservation.body)
    assert (found.id, found.tenant, found.data) == (job, "acme", {"to": "Zoë", "empty": {}})
    worker.done(reservation)
    worker.drop()


def test_what_python_enqueues_php_takes_and_what_php_parks_python_reads(url, store):
    job = Producer.on(store, "acme").enqueue("SendMail", {"to": "Zoë", "empty": {}}, queue="mail")
    work = """
        $worker = $queue()->worker('mail');
        $held = $worker->reserve(5);
        $worker->later($held, Envelope::again($held->body, 1795225000000), 600);
        $worker->park($held, (new ParkedRecord('It was a test.', $held->body, 1))->encode());
        $worker->done($held);
        echo $held->body;
    """
    body = php(work, url)
    assert json.loads(body)["id"] == job
    assert store.count("mail") == Counts(0, 0, {600: 1}, 1)
    parked = store.parked("mail")
    record = ParkedRecord.decode(parked.reserve(5).body)
    assert (record.reason, record.body, record.attempts) == ("It was a test.", body.encode(), 1)
    parked.drop()


def test_both_count_and_peek_the_same(url, store):
    store.put("mail", b"next")
    store.put("mail", b"late", delay=600)
    store.park("mail", ParkedRecord("Boom", b"x").encode())
    look = """
        $counts = $queue()->count('mail');
        $numbers = [$counts->ready, $counts->reserved, $counts->delayed, $counts->parked];
        echo json_encode([$numbers, $queue()->peek('mail')]);
    """
    assert json.loads(php(look, url)) == [[1, 0, {"600": 1}, 1], "next"]
    assert store.count("mail") == Counts(1, 0, {600: 1}, 1)


def test_what_one_language_has_done_the_other_does_not_do_again(tmp_path):
    file, key = tmp_path / "once.db", uuid.uuid4().hex
    run = "echo json_encode($once()->run($argv[3], 3600, function () {}));"
    assert php(run, file, key) == "true"
    once = Once(SqliteStore(file))
    assert once.run(key, DAY, lambda: pytest.fail("PHP has done it")) is False
    assert once.run(key + "x", DAY, lambda: None) is True
    assert php(run, file, key + "x") == "false"


def test_while_one_language_is_at_it_the_other_is_told_busy(tmp_path):
    file, key = tmp_path / "once.db", uuid.uuid4().hex
    seen = []
    run = """
        try {
            $once()->run($argv[3], 3600, fn () => print('ran'));
        } catch (Busy) {
            echo 'busy';
        }
    """
    assert Once(SqliteStore(file)).run(key, DAY, lambda: seen.append(php(run, file, key))) is True
    assert seen == ["busy"]


def test_a_claim_of_php_that_is_not_over_holds_up_python(tmp_path):
    file, key = tmp_path / "once.db", uuid.uuid4().hex
    # As after a crash between the act and its mark.
    php("(new PdoStore(new PDO('sqlite:' . $argv[2])))->claim($argv[3], 'token', 60);", file, key)
    with pytest.raises(Busy):
        Once(SqliteStore(file)).run(key, DAY, lambda: pytest.fail("PHP is at it"))
