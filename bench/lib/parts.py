"""The parts of bench/run: which comparison each is, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One comparison: its program in this folder, with what arguments, and an estimate of its time."""

    name: str
    what: str
    full: tuple[str, ...]
    quick: tuple[str, ...]
    before_s: float
    """Before the first run and after the last."""
    run_s: float
    quick_s: float
    """The whole of a quick run."""
    hosts: bool = False
    """Containers are made."""

    @property
    def program(self) -> str:
        return f"{self.name.replace('-', '_')}.py"

    def seconds(self, runs: int, *, quick: bool) -> float:
        return self.quick_s * runs if quick else self.before_s + runs * self.run_s


PARTS = {
    part.name: part
    for part in (
        Part(
            "broker",
            "the embedded broker, a Kestrel by --kestrel, beanstalkd, Redis lists",
            ("--connections", "1,50,500"),
            ("--connections", "1,50", "--requests", "400"),
            5,
            35,
            5,
        ),
        Part(
            "jobs",
            "one worker: Python, PHP, RQ and its SimpleWorker, Celery with both prefetches",
            ("--seconds", "6"),
            ("--only", "python,php", "--jobs", "50", "--trickle", "20", "--seconds", "0.5"),
            30,
            105,
            10,
        ),
        Part(
            "web",
            "kestrel-web: its pages, and what its polls cost the brokers",
            ("--seconds", "10", "--requests", "20"),
            ("--queues", "20", "--viewers", "3", "--seconds", "0.5", "--requests", "2"),
            15,
            95,
            8,
        ),
        Part(
            "sentry",
            "what reporting failing jobs costs a worker",
            ("--jobs", "1000"),
            ("--jobs", "40", "--only", "python"),
            20,
            55,
            60,
        ),
        Part(
            "deploy",
            "fab deploy, Capistrano, pyinfra, plain Fabric",
            ("--hosts", "2,10", "--cases", "nothing,one file", "--only", "fab,capistrano,pyinfra,fabric"),
            ("--hosts", "2", "--delay", "0", "--cases", "one file", "--only", "fab,fabric"),
            420,
            150,
            150,
            hosts=True,
        ),
        Part(
            "deploy-load",
            "a deploy under 200 jobs a second: lost, doubled, how long jobs waited",
            ("--png", ".build/deploy-load.png"),
            ("--png", ".build/deploy-load.png", "--soak", "2"),
            150,
            110,
            220,
            hosts=True,
        ),
        Part(
            "site",
            "ansible-playbook site.yml on 1, 4 and 10 hosts: a first run, then no change again and again",
            (),
            ("--hosts", "1", "--first-runs", "0"),
            900,
            400,
            240,
            hosts=True,
        ),
        Part(
            "up",
            "bin/up: no hosts but image and virtual environment, then no change",
            (),
            ("--env", "single"),
            30,
            130,
            200,
            hosts=True,
        ),
    )
}
