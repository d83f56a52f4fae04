"""The stand-in for a Kestrel archive: laid out as upstream's, as strict about a configuration as scalac."""

from __future__ import annotations

import io
import sys
import zipfile

import pytest

from support import host_programs, kestrel_standin
from support.kestrel_standin import scala

HEAD = "".join(f"import {name}\n" for name in sorted(scala.IMPORTS))
UPSTREAMS = """
new KestrelConfig {
  listenAddress = "0.0.0.0"
  memcacheListenPort = 22133
  textListenPort = 2222
  queuePath = "/var/spool/kestrel"
  clientTimeout = None
  expirationTimerFrequency = 1.second
  maxOpenTransactions = 100
  // default queue settings:
  default.defaultJournalSize = 16.megabytes
  default.syncJournal = 100.milliseconds
  admin.httpPort = 2223
  admin.statsNodes = new StatsConfig {
    reporters = new TimeSeriesCollectorConfig
  }
  queues = new QueueBuilder {
    name = "weather_updates"
    maxAge = 1800.seconds
    maxItems = 1500000
  } :: new QueueBuilder {
    /* in memory */
    name = "transient_events"; keepJournal = false
  }
  aliases = List(new AliasBuilder { name = "both"; destinationQueues = List("a", "b") })
  loggers = new LoggerConfig {
    level = Level.WARNING
    handlers = new FileHandlerConfig {
      filename = "/var/log/kestrel/kestrel.log"
      roll = Policy.SigHup
    }
  }
}
"""


def read(tmp_path, text):
    path = tmp_path / "kestrel.scala"
    path.write_text(text)
    return scala.read(path)


def test_a_configuration_in_upstreams_style_becomes_the_brokers(tmp_path):
    found = read(tmp_path, HEAD + UPSTREAMS)
    assert found.log_files == ["/var/log/kestrel/kestrel.log"]
    assert found.broker == {
        "listen_address": "0.0.0.0",
        "port": 22133,
        "admin_address": "0.0.0.0",
        "admin_port": 2223,
        "queue_path": "/var/spool/kestrel",
        "status_file": "/tmp/.kestrel-status",
        "max_open_transactions": 100,
        "client_timeout_ms": None,
        "expiration_timer_ms": 1000,
        "sync_journal_ms": 100,
        "default": {"default_journal_size": 16 * 1024**2},
        "queues": {
            "weather_updates": {"max_items": 1500000, "max_age": 1800.0},
            "transient_events": {"keep_journal": False},
        },
        "aliases": {"both": ["a", "b"]},
        "log_level": "warning",
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ('memcacheListenPort = "22133"', "type mismatch"),
        ("maxOpenTransactions = None", "type mismatch"),
        ("maxOpenTransactions = 3000000000", "integer number too large"),
        ("default.maxMemorySize = 128", "type mismatch"),
        ("default.maxMemorySize = 128.seconds", "type mismatch"),
        ("default.maxAge = 5.fortnights", "value fortnights is not a member of Int"),
        ("maxItems = 5", "not found: value maxItems"),
        ("queues = List(new Queue { })", "not found: type Queue"),
        ('queues = List(new QueueBuilder { name = "a" }', "expected"),
        ('queuePath = "/x', "illegal character"),
        ("loggers = new LoggerConfig { level = Level.LOUD }", "not found: value Level.LOUD"),
        ("default.discardOldWhenFull = yes", "not found: value yes"),
        ("listenAddress = 127.0.0.1", "expected"),
    ],
)
def test_what_scalac_would_refuse_is_refused_with_the_line(tmp_path, wrong, says):
    with pytest.raises(scala.ScalaError) as refused:
        read(tmp_path, f"{HEAD}new KestrelConfig {{\n  {wrong}\n}}\n")
    assert says in str(refused.value)
    assert str(refused.value).startswith("line ")


def test_a_missing_import_is_an_error(tmp_path):
    with pytest.raises(scala.ScalaError, match="not found"):
        read(tmp_path, HEAD.split("\n", 1)[1] + "new KestrelConfig {\n  maxOpenTransactions = 1\n}\n")


def test_the_archive_is_laid_out_as_upstreams_and_the_same_each_time():
    content = kestrel_standin.build(b"class")
    assert content == kestrel_standin.build(b"class")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert sorted({name.split("/")[1] for name in archive.namelist()}) == [
            "config",
            "kestrel_2.9.2-2.4.1.jar",
            "libs",
            "scripts",
        ]
        jar = zipfile.ZipFile(io.BytesIO(archive.read("kestrel-2.4.1/kestrel_2.9.2-2.4.1.jar")))
        assert kestrel_standin.MAIN in jar.namelist()


def test_the_archive_names_itself_a_stand_in():
    with zipfile.ZipFile(io.BytesIO(kestrel_standin.build(b"class"))) as archive:
        assert b"STAND-IN" in archive.read("kestrel-2.4.1/config/production.scala")
    assert "stand-in for Kestrel" in (kestrel_standin.FOLDER / "server.py").read_text()


def test_without_a_javac_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    main = host_programs.load(kestrel_standin.FOLDER / "__main__.py").main
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["kestrel_standin", str(tmp_path / "out.zip")])
    assert main() == 1
    assert capsys.readouterr().err == "kestrel_standin: there is no javac here: give a compiled class file\n"
    assert list(tmp_path.iterdir()) == []
