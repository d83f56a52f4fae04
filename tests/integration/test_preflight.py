"""Bad inventories are refused by ansible-playbook itself: by name, in one line, before anything is changed.

Each case is a host of one run, so that it costs a fraction of a second. Only the preflight tasks are run,
on this machine, without becoming root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"

pytestmark = pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (package iproute2)")

GOOD = {
    "kestrel_stack_app": "shop",
    "kestrel_stack_namespace": "shop",
    "kestrel_stack_environment": "test",
    "kestrel_stack_address": "127.0.0.1",
    "kestrel_stack_queues": [{"name": "hello_world"}],
    "deploy_user": "deploy",
    "kestrel_flavor": "embedded",
    "sentry_backend": "bugsink",
    # Of the host's own addresses one that the others reach.
    "sentry_listen_address": "10.0.0.1",
    "sentry_bugsink_port": 28765,
    "sentry_admin_email": "anna@example.com",
    "sentry_admin_password": "a sample, not a secret",
    "consumers_python_app": "shop.jobs:registry",
    "web_python_app": "shop.web:application",
    "web_port": 28080,
    "kestrel_web_port": 28090,
    "app_host_deploy_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExample test"],
}
ANNA = {"name": "anna", "password_hash": f"$argon2id$v=19$m=65536,t=3,p=4$c2FsdA${'a' * 43}"}
# Facts of a supported host, whatever the machine is that the tests run on.
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "architecture": "x86_64",
    "all_ipv4_addresses": ["10.0.0.1"],
    "all_ipv6_addresses": [],
    "memtotal_mb": 64000,
}

ABSENT = object()
CASES = {
    "a-good-inventory": ({}, None),
    "a-misspelt-shared-variable": (
        {"kestrel_stack_queus": []},
        "unknown variable kestrel_stack_queus: did you mean kestrel_stack_queues?",
    ),
    "a-shared-variable-misspelt-and-so-missing": (
        {"kestrel_stack_queues": ABSENT, "kestrel_stack_queus": []},
        "unknown variable kestrel_stack_queus: did you mean kestrel_stack_queues?",
    ),
    "a-misspelt-role-variable": (
        {"consumers_pyhton_app": "shop.jobs:registry"},
        "unknown variable consumers_pyhton_app: did you mean consumers_python_app?",
    ),
    "an-invented-variable": (
        {"kestrel_flavour_of_the_month": "x"},
        "unknown variable kestrel_flavour_of_the_month: no role here reads it, remove it",
    ),
    "a-missing-variable": (
        {"kestrel_stack_namespace": ABSENT},
        "role kestrel: missing required arguments: kestrel_stack_namespace"
        ": set what is missing in the inventory, as ansible/inventories/example does",
    ),
    "no-sentry-backend": (
        {"sentry_backend": ABSENT},
        "role app_host: missing required arguments: sentry_backend"
        ": set what is missing in the inventory, as ansible/inventories/example does",
    ),
    "an-unknown-sentry-backend": (
        {"sentry_backend": "paper"},
        "role app_host: value of sentry_backend must be one of:"
        " self_hosted, bugsink, external, none, got: paper",
    ),
    "a-misspelt-queue-option": (
        {"kestrel_stack_queues": [{"name": "mail", "max_jbos": 1}]},
        "role kestrel: unknown option kestrel_stack_queues.max_jbos: known are"
        " alert, also, discard_old_when_full, fanout_only, fanouts, job_timeout, language, max_age,"
        " max_item_size, max_items, max_jobs, max_memory, max_memory_size, max_size, max_time, name,"
        " processes, rate_limit, retry_delays",
    ),
    "no-size": (
        {"kestrel_max_memory_size": "lots"},
        "kestrel_max_memory_size: lots is not a size: write it like 512MB (KB, MB or GB), or in bytes",
    ),
    "a-fanout-queue-without-fanouts": (
        {"kestrel_stack_queues": [{"name": "mail", "fanout_only": True}]},
        "kestrel_stack_queues: mail: fanout_only without fanouts would lose every item: name at least one",
    ),
    "an-alias-that-hides-a-queue": (
        {"kestrel_aliases": {"shop_hello_world": ["other"]}},
        "kestrel_aliases: shop_hello_world is a queue's name, which it would hide: choose another",
    ),
    "an-illegal-queue-name": (
        {"kestrel_stack_queues": [{"name": "mail/x"}]},
        "kestrel_stack_queues: entry 1: queue name 'mail/x' is not legal: use A-Z, a-z, 0-9, _ and - only",
    ),
    "a-queue-twice": (
        {"kestrel_stack_queues": [{"name": "mail"}, {"name": "mail"}]},
        "kestrel_stack_queues: mail is there twice: remove one of them",
    ),
    "an-illegal-namespace": (
        {"kestrel_stack_namespace": "my shop"},
        "kestrel_stack_namespace my shop is not legal: use A-Z, a-z, 0-9, _ and - only",
    ),
    "php-jobs-that-nobody-says-where-to-find": (
        {"kestrel_stack_queues": [{"name": "mail", "language": "php"}]},
        "consumers_php_app '' does not name the jobs: give a .php file inside the application,"
        " like php/jobs.php",
    ),
    "php-alone-needs-no-python-jobs": (
        {
            "kestrel_stack_queues": [{"name": "mail", "language": "php"}],
            "consumers_php_app": "php/jobs.php",
            "consumers_python_app": ABSENT,
        },
        None,
    ),
    "a-worker-of-two-languages": (
        {
            "kestrel_stack_queues": [
                {"name": "mail", "also": ["news"]},
                {"name": "news", "language": "php"},
            ],
            "consumers_php_app": "php/jobs.php",
        },
        "kestrel_stack_queues: mail: also names news, whose language is php:"
        " a worker runs jobs of one language",
    ),
    "a-webhook-that-is-no-url": (
        {"consumers_alarm_webhook": "chat.example.com/x"},
        "consumers_alarm_webhook is not a URL that begins with https:// or http://"
        " and has no blanks or quotes",
    ),
    "no-name-of-a-package": (
        {"app_host_packages": ["php-curl; rm"]},
        "app_host_packages: php-curl; rm is not the name of a Debian package, like php-curl",
    ),
    "an-external-sentry-without-its-dsn": (
        {"sentry_backend": "external"},
        "app_host_sentry_dsn must be the project's DSN, like https://KEY@sentry.example.com/1",
    ),
    "an-external-sentry-and-a-host-for-one": (
        {"sentry_backend": "external", "app_host_sentry_dsn": "https://abc@sentry.example.com/1"},
        "the inventory's group sentry has a-good-inventory, and sentry_backend is external, which needs none:"
        " empty the group, or set sentry_backend: bugsink or self_hosted",
    ),
    "no-sentry-and-a-host-for-one": (
        {"sentry_backend": "none"},
        "the inventory's group sentry has a-good-inventory, and sentry_backend is none, which needs none:"
        " empty the group, or set sentry_backend: bugsink or self_hosted",
    ),
    "a-dsn-of-two": (
        {"app_host_sentry_dsn": "https://abc@sentry.example.com/1"},
        "app_host_sentry_dsn is set, and sentry_backend is bugsink: use one",
    ),
    "a-sentry-on-an-address-of-another-host": (
        {"sentry_listen_address": "10.0.0.99"},
        "sentry_listen_address 10.0.0.99 is not an address of a-sentry-on-an-address-of-another-host:"
        " use 127.0.0.1 or one of 10.0.0.1",
    ),
    "a-privileged-port-for-bugsink": (
        {"sentry_bugsink_port": 80},
        "sentry_bugsink_port 80 must be a whole number from 1024 to 65535",
    ),
    "nobody-to-log-in": (
        {"sentry_admin_email": ABSENT, "sentry_admin_password": ABSENT},
        "sentry_admin_email and sentry_admin_password are empty, so nobody could log in: set both, the"
        " password from a vault, or for a lab sentry_generate_login: true",
    ),
    "an-administrator-without-a-password": (
        {"sentry_admin_password": ABSENT},
        "sentry_admin_password is empty, so nobody could log in: set both, the password from a vault, or for"
        " a lab sentry_generate_login: true",
    ),
    "an-administrator-without-an-address": (
        {"sentry_admin_email": "anna"},
        "sentry_admin_email anna is no address of mail: write it like anna@example.com",
    ),
    "a-password-to-guess": (
        {"sentry_admin_password": "secret"},
        "sentry_admin_password is too short: give at least 10 characters",
    ),
    "two-passwords": (
        {"sentry_generate_login": True, "sentry_login_file": "/x"},
        "sentry_admin_password is set, and sentry_generate_login would make another: use one of them",
    ),
    "a-login-to-sentry-without-a-place-to-keep-it": (
        {"sentry_generate_login": True, "sentry_admin_password": ABSENT},
        "sentry_login_file is empty: say where on the controller sentry_generate_login keeps the login",
    ),
    "a-key-that-is-short": (
        {"sentry_secret_key": "s3cret"},
        "sentry_secret_key must have at least 50 characters without blanks: leave it empty, or make one with"
        " `openssl rand -hex 32`",
    ),
    "sentry-below-a-path": (
        {"sentry_url": "https://example.com/errors"},
        "sentry_url must be like https://errors.example.com: no path, no user, nothing behind it",
    ),
    "a-way-around-nginx": (
        {
            "sentry_nginx": True,
            "sentry_nginx_listen_address": "10.0.0.1",
            "sentry_server_name": "errors.example.com",
            "sentry_tls_certificate": "/etc/ssl/errors.pem",
            "sentry_tls_key": "/etc/ssl/errors.key",
        },
        "sentry_listen_address 10.0.0.1 would be a way around nginx: leave it at 127.0.0.1, and set"
        " sentry_nginx_listen_address",
    ),
    "nginx-without-a-certificate": (
        {
            "sentry_nginx": True,
            "sentry_listen_address": "127.0.0.1",
            "sentry_nginx_listen_address": "10.0.0.1",
            "sentry_server_name": "errors.example.com",
        },
        "sentry_nginx needs sentry_tls_certificate and sentry_tls_key: give their paths on the host",
    ),
    "http-behind-nginx": (
        {
            "sentry_nginx": True,
            "sentry_listen_address": "127.0.0.1",
            "sentry_nginx_listen_address": "10.0.0.1",
            "sentry_server_name": "errors.example.com",
            "sentry_tls_certificate": "/etc/ssl/errors.pem",
            "sentry_tls_key": "/etc/ssl/errors.key",
            "sentry_url": "http://errors.example.com",
        },
        "sentry_url http://errors.example.com is HTTP, and sentry_nginx speaks HTTPS alone: write it with"
        " https://",
    ),
    "a-certificate-for-no-name": (
        {
            "sentry_nginx": True,
            "sentry_listen_address": "127.0.0.1",
            "sentry_nginx_listen_address": "10.0.0.1",
            "sentry_tls_certificate": "/etc/ssl/errors.pem",
            "sentry_tls_key": "/etc/ssl/errors.key",
        },
        "sentry_server_name is empty: give the name that the certificate is for",
    ),
    "a-rate-that-is-none": (
        {"sentry_nginx_rate": "many"},
        "sentry_nginx_rate many must look like 50r/s or 600r/m",
    ),
    "a-project-with-a-slash": (
        {"sentry_project": "shop/web"},
        "sentry_project 'shop/web' is not legal: a letter or digit, then up to 49 of A-Z, a-z, 0-9, ., _, -"
        " and blank",
    ),
    "mail-from-nobody": (
        {"sentry_mail": {"host": "mail.example.com"}},
        "sentry_mail: from is empty: give an address of mail, like anna@example.com",
    ),
    "an-unknown-option-of-mail": (
        {"sentry_mail": {"host": "mail.example.com", "from": "a@example.com", "pasword": "x"}},
        "sentry_mail: unknown option pasword: known are host, port, from, user, password, tls",
    ),
    "postgresql-that-nobody-says-where-to-find": (
        {"sentry_bugsink_database": "postgresql"},
        "sentry_bugsink_postgresql has no host, name, user, password: sentry_bugsink_database postgresql"
        " needs them",
    ),
    "postgresql-for-nobody": (
        {"sentry_bugsink_postgresql": {"host": "10.0.0.5"}},
        "sentry_bugsink_postgresql is set, and sentry_bugsink_database is sqlite: use one",
    ),
    "another-database": (
        {"sentry_bugsink_database": "mysql"},
        "role sentry: value of sentry_bugsink_database must be one of: sqlite, postgresql, got: mysql",
    ),
    "a-list-of-packages-that-is-not-there": (
        {"sentry_bugsink_requirements": "requirements/bugsnik.txt"},
        "sentry_bugsink_requirements requirements/bugsnik.txt: there is no such file on the controller",
    ),
    "events-kept-for-no-day": (
        {"sentry_retention_days": 0},
        "sentry_retention_days 0 must be a whole number from 1 to 3650",
    ),
    "a-misspelt-variable-of-sentry": (
        {"sentry_retention_dyas": 30},
        "unknown variable sentry_retention_dyas: did you mean sentry_retention_days?",
    ),
    "an-event-without-a-place-for-its-id": (
        {"kestrel_web_event_url": "https://errors.example.com/event/"},
        "kestrel_web_event_url must be like https://errors.example.com/event/{event_id}/: http or https, and"
        " once {event_id} or {event_uuid} in its path",
    ),
    "no-flavour-is-a-release": (
        {"kestrel_flavor": ABSENT, "kestrel_archive": "/no/such.zip"},
        "kestrel_archive /no/such.zip: there is no such file on the controller",
    ),
    "another-file-than-the-release": (
        {"kestrel_flavor": "release", "kestrel_archive": str(CHECKOUT / "LICENSE")},
        f"kestrel_archive {CHECKOUT / 'LICENSE'}: its SHA-256 is"
        f" {hashlib.sha256((CHECKOUT / 'LICENSE').read_bytes()).hexdigest()},"
        " not 5d72a301737cc6cc3908483ce73d4bdb6e96521f3f8c96f93b732d740aaea80c: it is not unpacked"
        " (if you trust it, put its SHA-256 into kestrel_archive_sha256)",
    ),
    "master": (
        {"kestrel_flavor": "release", "kestrel_release": "master"},
        "kestrel_release master is no release: master and snapshots were unstable;"
        " choose one of 2.4.1, 2.3.4, 2.3.2, 2.3.1, 2.2.0, 2.1.5, 2.1.4",
    ),
    "an-untested-release": (
        {"kestrel_flavor": "release", "kestrel_release": "2.3.4"},
        "kestrel_release 2.3.4 was never tried with this role: use 2.4.1,"
        " or set kestrel_allow_untested_release: true",
    ),
    "a-java-that-debian-12-does-not-have": (
        {"kestrel_flavor": "release", "kestrel_java_version": "25"},
        "kestrel_java_version 25 is not in Debian 12 (a-java-that-debian-12-does-not-have): use 17,"
        " or install a JDK yourself and name its folder in kestrel_java_home",
    ),
    "a-java-home-without-java": (
        {"kestrel_flavor": "release", "kestrel_java_home": "/no/such/jdk"},
        "a-java-home-without-java: kestrel_java_home: /no/such/jdk has no bin/java:"
        " give a JDK's folder, like /usr/lib/jvm/java-17-openjdk-amd64",
    ),
    "a-wrong-address": (
        {"kestrel_stack_address": "10.0.0"},
        "kestrel_stack_address of a-wrong-address is 10.0.0, which is no address and no host name:"
        " give the address other hosts reach it by, like 10.0.0.11",
    ),
    "an-address-of-another-host": (
        {"kestrel_listen_address": "10.0.0.99"},
        "kestrel_listen_address 10.0.0.99 is not an address of an-address-of-another-host:"
        " use 127.0.0.1 or one of 10.0.0.1",
    ),
    "a-privileged-port": (
        {"kestrel_port": 221},
        "kestrel_port 221 must be a whole number from 1024 to 65535",
    ),
    "one-port-for-both": (
        {"kestrel_admin_port": 22133},
        "kestrel_port and kestrel_admin_port are both 22133: choose two ports",
    ),
    "a-name-where-the-filter-wants-an-address": (
        {"kestrel_firewall_port_from": ["10.0.0.0/24", "office"]},
        "kestrel_firewall_port_from: office is no address and no network:"
        " write it like 10.0.0.21 or 10.0.0.0/24",
    ),
    "a-network-with-host-bits": (
        {"kestrel_firewall_admin_from": ["10.0.0.9/24"]},
        "kestrel_firewall_admin_from: 10.0.0.9/24 is no address and no network:"
        " write 10.0.0.0/24, or the one address",
    ),
    "a-mount-of-nothing": (
        {"kestrel_spool_mount": {"fstype": "ext4"}},
        "kestrel_spool_mount has no src: write {src: /dev/disk/by-uuid/..., fstype: ext4}",
    ),
    "a-floor-that-is-no-size": (
        {"kestrel_spool_floor": "half"},
        "kestrel_spool_floor: half is not a size: write it like 512MB (KB, MB or GB), or in bytes",
    ),
    "no-logs": (
        {"consumers_log_max_megabytes": 0},
        "consumers_log_max_megabytes 0 must be a whole number at least 1",
    ),
    "no-deploy-key": (
        {"app_host_deploy_keys": []},
        "app_host_deploy_keys is empty, so nobody could deploy: list at least one public ssh key",
    ),
    "a-deploy-user-of-somebody-else": (
        {"deploy_user": "root"},
        "deploy_user root is another part's user: choose a user of its own",
    ),
    "no-registry": (
        {"consumers_python_app": ABSENT},
        "consumers_python_app '' does not name the jobs: give MODULE:REGISTRY, like shop.jobs:registry",
    ),
    "pages-that-nobody-says-where-to-find": (
        {"web_python_app": ABSENT},
        "web_python_app '' does not name the pages: give MODULE:APPLICATION, like shop.web:application",
    ),
    "pages-in-php-need-no-python": ({"web_language": "php", "web_python_app": ABSENT}, None),
    "a-php-front-outside-the-release": (
        {"web_language": "php", "web_php_front": "../index.php"},
        "web_php_front '../index.php' does not name the pages: give a .php file inside the application,"
        " like public/index.php",
    ),
    "pages-in-another-language": (
        {"web_language": "ruby"},
        "role web: value of web_language must be one of: python, php, got: ruby",
    ),
    "a-certificate-without-its-key": (
        {"web_tls_certificate": "/etc/ssl/shop.pem"},
        "web_tls_key is empty while web_tls_certificate is set: give both, or none",
    ),
    "a-relative-certificate": (
        {"web_tls_certificate": "shop.pem", "web_tls_key": "/etc/ssl/shop.key"},
        "web_tls_certificate 'shop.pem' is not an absolute path of A-Z, a-z, 0-9, ., _, - and /",
    ),
    "a-health-page-that-is-no-path": (
        {"web_health_path": "health?full=1"},
        "web_health_path 'health?full=1' is not the path of a page: write it like /health",
    ),
    "a-page-limit-that-is-no-size": (
        {"web_max_request_size": "much"},
        "web_max_request_size: much is not a size: write it like 512MB (KB, MB or GB), or in bytes",
    ),
    "pages-on-an-address-of-another-host": (
        {"web_listen_address": "10.0.0.99"},
        "web_listen_address 10.0.0.99 is not an address of pages-on-an-address-of-another-host:"
        " use 127.0.0.1 or one of 10.0.0.1",
    ),
    "kestrel-web-for-everybody": (
        {"kestrel_web_listen_address": "0.0.0.0"},
        "kestrel_web_listen_address 0.0.0.0 can be reached by others, and nobody would have to log in:"
        " set kestrel_web_users (or kestrel_web_proxy), or listen on 127.0.0.1",
    ),
    "kestrel-web-behind-an-nginx-for-everybody": (
        {
            "kestrel_web_nginx": True,
            "kestrel_web_nginx_listen_address": "10.0.0.1",
            "kestrel_web_server_name": "queues.example.com",
            "kestrel_web_tls_certificate": "/etc/ssl/queues.pem",
            "kestrel_web_tls_key": "/etc/ssl/queues.key",
        },
        "kestrel_web_nginx_listen_address 10.0.0.1 can be reached by others, and nobody would have to log in:"
        " set kestrel_web_users (or kestrel_web_proxy), or listen on 127.0.0.1",
    ),
    "kestrel-web-behind-nginx-without-a-certificate": (
        {"kestrel_web_nginx": True, "kestrel_web_users": [ANNA], "kestrel_web_server_name": "q.example.com"},
        "kestrel_web_nginx needs kestrel_web_tls_certificate and kestrel_web_tls_key: give their paths on the"
        " host",
    ),
    "a-password-instead-of-its-hash": (
        {"kestrel_web_users": [{"name": "anna", "password": "secret"}]},
        "kestrel_web_users: anna: password is not taken, only its hash: make one with"
        " `kestrel-web hash-password` and write it as password_hash",
    ),
    "a-webhook-of-kestrel-web-that-is-no-url": (
        {"kestrel_web_webhook": "chat.example.com/x"},
        "kestrel_web_webhook is not a URL that begins with https:// or http:// and has no blanks or quotes",
    ),
    "a-login-without-a-place-to-keep-it": (
        {"kestrel_web_generate_login": True},
        "kestrel_web_login_file is empty: say where on the controller kestrel_web_generate_login keeps the"
        " login",
    ),
    "a-privileged-port-for-kestrel-web": (
        {"kestrel_web_port": 80},
        "kestrel_web_port 80 must be a whole number from 1024 to 65535",
    ),
    "a-misspelt-variable-of-kestrel-web": (
        {"kestrel_web_actoins": ["flush"]},
        "unknown variable kestrel_web_actoins: did you mean kestrel_web_actions?",
    ),
    "ubuntu": (
        {"test_facts": {**FACTS, "distribution": "Ubuntu", "distribution_major_version": "24"}},
        "ubuntu: Ubuntu 24 is not supported: use Debian 12 or 13",
    ),
    "a-32-bit-host": (
        {"test_facts": {**FACTS, "architecture": "armv7l"}},
        "a-32-bit-host: architecture armv7l is not supported: use amd64 or arm64",
    ),
}

ROLES = ["kestrel", "app_host", "supervisor", "consumers", "web", "kestrel_web", "sentry"]
# Most of the time goes into running them: what is said of one of these alone is for it to refuse.
ALONE = ("app_host", "consumers", "web", "kestrel_web", "sentry")
# For what is said of others, or of several.
MOST = ROLES[:-2]
PLAY = [
    {
        "name": "Check what each host says",
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Pretend to be another host",
                # cacheable is what makes them facts.
                "ansible.builtin.set_fact": {
                    **{name: f"{{{{ test_facts['{name}'] }}}}" for name in FACTS},
                    "cacheable": True,
                },
            },
            # Not one loop: over hosts with other roles its order is another each time.
            *(
                {
                    "name": "Run the checks alone",
                    "ansible.builtin.include_role": {"name": role, "tasks_from": "preflight"},
                    "when": f"'{role}' in test_roles",
                }
                for role in ROLES
            ),
        ],
    }
]


def ansible(playbook: Path, inventory: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(CHECKOUT / "ansible/roles"),
        "ANSIBLE_HOME": str(home / "ansible"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_CALLBACK_FORMAT_PRETTY": "False",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    return subprocess.run(
        [PLAYBOOK, "-i", inventory, *arguments, playbook],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
    )


def write_inventory(folder: Path, hosts: dict[str, dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "all": {
            "vars": {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": sys.executable,
            },
            "children": {
                # A Kestrel on every host: then loopback is reachable, and no host depends on another case.
                "kestrel": {"hosts": {"a-good-inventory": None}},
                "sentry": {"hosts": {"a-good-inventory": None}},
                "consumers": {"hosts": hosts},
                "app": {"children": {"consumers": None}},
            },
        }
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(said, sort_keys=False))
    return folder


def variables(changed: dict) -> dict:
    own = {role for role in ALONE if changed and all(name.startswith(f"{role}_") for name in changed)}
    roles = list(own - {"sentry"} if "sentry_backend" in changed else own) or MOST
    merged = {**GOOD, "test_facts": FACTS, "test_roles": roles, **changed}
    return {name: value for name, value in merged.items() if value is not ABSENT}


@pytest.fixture(scope="module")
def taken():
    """A port that another program has: this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory, taken):
    """Run all cases at once."""
    folder = tmp_path_factory.mktemp("preflight")
    hosts = {name: variables(changed) for name, (changed, _) in CASES.items()}
    hosts["a-good-inventory"]["test_roles"] = ROLES
    # The Kestrel of the good host listens where all can reach it.
    hosts["a-good-inventory"]["kestrel_listen_address"] = "0.0.0.0"
    hosts["a-taken-port"] = variables({"kestrel_port": taken})
    hosts["a-small-host"] = variables(
        {"kestrel_flavor": "release", "kestrel_heap_mb": 4000, "test_facts": {**FACTS, "memtotal_mb": 4000}}
    )
    hosts["a-sentry-that-workers-cannot-reach"] = variables({"sentry_listen_address": "127.0.0.1"})
    hosts["a-sentry-on-a-taken-port"] = variables(
        # Everywhere, so that it meets whoever has the port on one address.
        {"sentry_bugsink_port": taken, "sentry_listen_address": "0.0.0.0"}
    )
    hosts["a-certificate-that-nginx-cannot-read"] = variables(
        {
            "sentry_nginx": True,
            "sentry_listen_address": "127.0.0.1",
            "sentry_nginx_listen_address": "10.0.0.1",
            "sentry_nginx_port": 28443,
            "sentry_server_name": "errors.example.com",
            "sentry_tls_certificate": "/no/such.pem",
            "sentry_tls_key": "/no/such.key",
        }
    )
    hosts["a-floor-above-the-disk"] = variables({"kestrel_spool_floor": f"{1024**2}GB"})
    hosts["a-server-without-a-packet-filter"] = variables(
        {"kestrel_listen_address": "0.0.0.0", "kestrel_firewall": False}
    )
    (folder / "play.yml").write_text(yaml.safe_dump(PLAY, sort_keys=False))
    done = ansible(folder / "play.yml", write_inventory(folder / "inventory", hosts), folder)
    assert "PLAY RECAP" in done.stdout, done.stdout + done.stderr
    return done


def failure(done: subprocess.CompletedProcess[str], host: str) -> str | None:
    """Return the message of a host's one failure."""
    found = re.findall(rf"^fatal: \[{re.escape(host)}\]: FAILED! => (.*)$", done.stdout, re.MULTILINE)
    assert len(found) <= 1, found
    if not found:
        assert re.search(rf"^{re.escape(host)} .* failed=0 ", done.stdout, re.MULTILINE), done.stdout
        return None
    return json.loads(found[0])["msg"]


def test_a_heap_that_the_host_cannot_have_is_refused_with_the_figures(run):
    message = failure(run, "a-small-host")
    assert message.startswith(
        "a-small-host has 4000 MB of memory and Kestrel would need 4456 MB: a heap of 4000 MB, for "
    )
    assert message.endswith(
        "lower kestrel_max_memory_size, kestrel_side_max_memory_size or a queue's max_memory_size, or set"
        " kestrel_heap_mb and accept that full queues end the server"
    )


@pytest.mark.parametrize("host", CASES)
def test_it_is_refused_in_one_line_that_names_it(run, host):
    expected = CASES[host][1]
    message = failure(run, host)
    if expected is None:
        assert message is None
        return
    assert message is not None, f"{host} was let through"
    assert len(message.splitlines()) == 1
    assert message == expected


def test_a_port_of_another_program_is_refused_with_the_program_that_has_it(run, taken):
    message = failure(run, "a-taken-port")
    assert message is not None
    who = rf"(python\S* \(pid {os.getpid()}\)|pytest \(pid {os.getpid()}\)|another program)"
    assert re.fullmatch(
        rf"a-taken-port: kestrel_port: port {taken} on 127\.0\.0\.1 is taken by {who}:"
        r" stop it or set kestrel_port",
        message,
    )


def test_a_floor_that_no_disk_has_is_refused_with_the_figures(run):
    message = failure(run, "a-floor-above-the-disk")
    assert message is not None
    assert re.fullmatch(
        r"a-floor-above-the-disk: kestrel_spool_floor is 1048576 GB, and the file system of"
        r" /var/spool/kestrel holds [\d.]+ [KMG]B: the server would never be UP;"
        r" set kestrel_spool_floor lower \(a tenth more must fit\), or give it more room",
        message,
    )


def test_open_ports_without_the_packet_filter_are_warned_of_and_let_through(run):
    assert failure(run, "a-server-without-a-packet-filter") is None
    warned = re.findall(r"^ok: \[(\S+)\] => .*?(WARNING: [^\"]*)", run.stdout, re.MULTILINE)
    assert [(host, text) for host, text in warned if "kestrel_firewall" in text] == [
        (
            "a-server-without-a-packet-filter",
            "WARNING: kestrel_firewall is false: whoever reaches a-server-without-a-packet-filter reaches"
            " the memcache port 22133, and neither has a login",
        )
    ]


def test_a_sentry_on_loopback_is_refused_with_those_who_could_not_reach_it(run):
    message = failure(run, "a-sentry-that-workers-cannot-reach")
    assert message is not None
    assert re.fullmatch(
        r"sentry_listen_address of a-sentry-that-workers-cannot-reach is 127\.0\.0\.1, which a-\S+, a-\S+,"
        r" a-\S+ and \d+ more cannot reach: set it to the host's kestrel_stack_address, or set"
        r" sentry_nginx: true with a certificate",
        message,
    )


def test_bugsinks_port_of_another_program_is_refused_with_the_program_that_has_it(run, taken):
    message = failure(run, "a-sentry-on-a-taken-port")
    assert message is not None
    assert re.fullmatch(
        rf"a-sentry-on-a-taken-port: sentry_bugsink_port: port {taken} on 127\.0\.0\.1 is taken by .+:"
        r" stop it or set sentry_bugsink_port",
        message,
    )


def test_a_certificate_that_nginx_cannot_read_is_refused(run):
    assert failure(run, "a-certificate-that-nginx-cannot-read") == (
        "a-certificate-that-nginx-cannot-read: sentry_tls_certificate and sentry_tls_key: missing, or user"
        " www-data may not read it: put it there, readable for group www-data"
    )


def test_errors_in_the_clear_are_warned_of_and_let_through(run):
    assert failure(run, "a-good-inventory") is None
    assert (
        "WARNING: sentry_listen_address 10.0.0.1 of a-good-inventory speaks HTTP: passwords and what errors"
        " tell of your users can be read on the way"
    ) in run.stdout


def test_nothing_is_changed_by_checking(run):
    recaps = re.findall(r"^\S+ +: .*changed=(\d+) +unreachable=(\d+)", run.stdout, re.MULTILINE)
    assert len(recaps) == len(CASES) + 7
    assert set(recaps) == {("0", "0")}


def test_site_yml_ends_for_every_host_when_one_is_wrong_before_any_play_that_changes_something(tmp_path):
    hosts = {
        "a-good-inventory": variables({"sentry_backend": "none"}),
        "wrong": variables({"consumers_pyhton_app": "x:y"}),
    }
    for host in hosts.values():
        del host["test_facts"], host["test_roles"]
    inventory = write_inventory(tmp_path / "inventory", hosts)
    said = yaml.safe_load((inventory / "hosts.yml").read_text())
    said["all"]["children"]["sentry"] = {}
    (inventory / "hosts.yml").write_text(yaml.safe_dump(said))
    # --check is for the case that this test fails.
    done = ansible(CHECKOUT / "ansible/site.yml", inventory, tmp_path, "--check")
    assert done.returncode != 0
    assert (
        failure(done, "wrong") == "unknown variable consumers_pyhton_app: did you mean consumers_python_app?"
    )
    assert re.findall(r"^PLAY \[(.*)\]", done.stdout, re.MULTILINE) == [
        "Refuse what cannot work, before anything is changed",
        "Go on only where no host was refused",
    ]
    assert failure(done, "a-good-inventory") == "wrong failed, as said above: no host goes on"
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0"]


@pytest.mark.parametrize("folder", [".", "ansible"], ids=["from the root", "from ansible"])
@pytest.mark.parametrize("broken", [False, True], ids=["misspelt", "broken"])
def test_an_inventory_that_cannot_be_read_ends_the_run(tmp_path, folder, broken):
    """With what Ansible comes with it is a warning among others, no hosts, and exit code 0."""
    inventory = tmp_path / "inventory"
    if broken:
        write_inventory(inventory, {})
        (inventory / "more.yml").write_text("all:\n\thosts: [\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [PLAYBOOK, "-i", inventory, CHECKOUT / "ansible/site.yml", "--list-hosts"],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_NOCOLOR": "1"},
        cwd=CHECKOUT / folder,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode != 0, done.stdout
    said = done.stderr.splitlines()[-1]
    assert said.startswith("[ERROR]: ")
    assert str(inventory / "more.yml" if broken else inventory) in said
